"""Processes of one gloo group for a test: started quickly, ended for sure.

They come from a fork server that has loaded torch once and not run it, meet through a file, talk
over the loopback and use one thread each.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "torch.fx.experimental.proxy_tensor"])


def run_ranks(world, function, *args, lost=(), store="file", seconds=60):
    """``function(rank, *args)`` in ``world`` processes of a group; their results in a list.

    ``store``: where they meet, a "file" or "tcp", which rank 0 then serves. ``lost``: ranks that
    are not to return. Raises AssertionError with the traceback of any other rank that fails. No
    process outlives this call.
    """
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(world):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_rank, args=(theirs, rank, world, folder, store, function, args), daemon=True
            )
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        try:
            deadline = time.monotonic() + seconds
            return [
                None if rank in lost else _result(rank, end, deadline)
                for rank, end in enumerate(ends)
            ]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _result(rank, end, deadline):
    assert end.poll(max(0.0, deadline - time.monotonic())), f"rank {rank} is late"
    try:
        error, result = end.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} ended without a result") from None
    assert error is None, f"rank {rank}:\n{error}"
    return result


def _rank(end: Connection, rank, world, folder, kind, function, args):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=_store(kind, rank, world, Path(folder)),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=30),
        )
        end.send((None, function(rank, *args)))
    except BaseException:
        end.send((traceback.format_exc(), None))
    finally:
        end.close()
        os._exit(0)  # a broken group's destructors may wait for what never comes


def _store(kind, rank, world, folder):
    if kind == "file":
        return dist.FileStore(str(folder / "store"), world)
    port = folder / "port"
    if rank == 0:  # takes any free port, and says which in one step
        store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
        (folder / "new").write_text(str(store.port))
        (folder / "new").rename(port)
        return store
    while not port.exists():
        time.sleep(0.01)
    return dist.TCPStore("127.0.0.1", int(port.read_text()), world)
