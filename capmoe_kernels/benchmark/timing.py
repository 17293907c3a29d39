"""Samples that take turns, so that whatever slows the machine down slows all sides down."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
LEAST_SAMPLES, MOST_SAMPLES = 3, 50


class Clock(NamedTuple):
    """How a call is timed, in seconds, and what that is called."""

    name: str
    seconds: Callable[[Call], float]


def cpu_seconds(call: Call) -> float:
    """CPU time of this process: what others do on the same cores is not counted."""
    start = time.process_time()
    call()
    return time.process_time() - start


def wall_seconds(call: Call) -> float:
    """Time on the wall."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_seconds(call: Call) -> float:
    """Time on the device from before the call's first kernel to behind its last."""
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def choose_clock(device: torch.device, threads: int) -> Clock:
    """CPU time counts every thread, so it is for one."""
    if device.type == "cuda":
        return Clock("CUDA events, launches included", cuda_seconds)
    if threads == 1:
        return Clock("CPU time of one thread", cpu_seconds)
    return Clock(f"wall time of {threads} threads", wall_seconds)


def take_turns(
    calls: dict[str, Call],
    clock: Clock,
    seconds: float,
    before: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Samples of each call. One that has been at it for ``seconds`` leaves the turns.

    Not before LEAST_SAMPLES, and at MOST_SAMPLES in any case. ``before``, given the name, runs
    ahead of every sample and is not timed. The calls are warm: they ran once.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    waiting = list(calls)
    while waiting:
        for name in waiting:
            start = time.monotonic()
            if before is not None:
                before(name)
            samples[name].append(clock.seconds(calls[name]))
            spent[name] += time.monotonic() - start
        waiting = [name for name in waiting if _goes_on(len(samples[name]), spent[name], seconds)]
    return samples


def _goes_on(taken: int, spent: float, seconds: float) -> bool:
    return taken < LEAST_SAMPLES or (taken < MOST_SAMPLES and spent < seconds)


def keep_freed_memory() -> None:
    """glibc: no allocation by mmap, and no trimming of the heap, as a serving process would.

    Otherwise calls with many tokens measure how fast the system clears pages.
    """
    trim_threshold, mmap_max = -1, -4
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
