"""What all ranks must have alike, found out before the first exchange instead of by a hang."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from .watch import RankError

_POLL_SECONDS = 0.005


def group_timeout(group: dist.ProcessGroup) -> float:
    """Seconds after which the group's own operations fail."""
    types = group._device_types
    kind = torch.device("cpu") if torch.device("cpu") in types or not types else types[0]
    timeout: timedelta = group._get_backend(kind).options._timeout
    return timeout.total_seconds()


def own_store(group: dist.ProcessGroup, kind: str = "built") -> Store:
    """A part of the group's store for one object of a kind that all ranks build in one order."""
    store = group.get_group_store()
    built = store.add(f"capmoe/{kind}/{group.rank()}", 1)
    return PrefixStore(f"capmoe/{kind}/{built}", store)


@contextmanager
def refusing(store: Store, rank: int) -> Iterator[None]:
    """Let the ranks that :func:`gather` know of an exception that keeps this one from it."""
    try:
        yield
    except Exception as error:
        refusal = f"raised {type(error).__name__}: {error}"
        store.set(f"terms/{rank}", json.dumps([None, refusal]))
        raise


def store_host(group: dist.ProcessGroup) -> int | None:
    """The rank of the group whose death takes the store along; None where there is none.

    The store of ``env://`` and ``tcp://`` lives in global rank 0, unless torchrun keeps it.
    """
    store = group.get_group_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept or not isinstance(store, TCPStore):
        return None
    global_ranks = dist.get_process_group_ranks(group)
    return global_ranks.index(0) if 0 in global_ranks else None


def gather(store: Store, rank: int, num_ranks: int, terms: Any, timeout: float) -> list[Any]:
    """Every rank's ``terms``, of JSON's types, by way of the store: no shape to agree on first.

    Raises:
        RankError: naming the ranks that did not come within ``timeout`` seconds, or that raised.
    """
    store.set(f"terms/{rank}", json.dumps([terms, ""]))
    deadline = time.monotonic() + timeout
    absent = list(range(num_ranks))
    while absent:
        absent = [other for other in absent if not store.check([f"terms/{other}"])]
        if absent and time.monotonic() > deadline:
            what = f"did not build its part within {timeout:g} s"
            raise RankError(tuple(absent), "construction", what)
        time.sleep(_POLL_SECONDS if absent else 0)
    words = [json.loads(store.get(f"terms/{other}")) for other in range(num_ranks)]
    for other, (_, refusal) in enumerate(words):
        if refusal:
            raise RankError((other,), "construction", refusal)
    return [terms for terms, _ in words]


def require_same(gathered: list[dict[str, Any]]) -> None:
    """Raise ValueError naming the first term that differs, and each value with its ranks."""
    for name in gathered[0]:
        ranks: dict[str, list[int]] = {}
        for rank, terms in enumerate(gathered):
            ranks.setdefault(str(terms[name]), []).append(rank)
        if len(ranks) > 1:
            values = "; ".join(f"{value} on {_named(own)}" for value, own in ranks.items())
            raise ValueError(f"all ranks must have the same {name}, got {values}")


def _named(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
