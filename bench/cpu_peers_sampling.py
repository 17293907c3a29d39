"""Samples that take turns, so that whatever slows the machine down slows all sides down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from capmoe_kernels.benchmark.timing import cpu_seconds

Call = Callable[[], Any]
MOST_ROUNDS = 50


def interleaved(
    calls: dict[str, Call],
    seconds: float,
    least: int = 3,
    before: Callable[[str], None] | None = None,
) -> tuple[dict[str, float], int]:
    """Median CPU seconds of each call, and the rounds taken: as many as fit, at least ``least``.

    ``before``, given the name, runs ahead of every sample and is not timed. The calls are warm:
    they ran once.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    rounds, end = 0, time.monotonic() + seconds
    while rounds < least or (time.monotonic() < end and rounds < MOST_ROUNDS):
        for name, call in calls.items():
            if before is not None:
                before(name)
            samples[name].append(cpu_seconds(call))
        rounds += 1
    return {name: statistics.median(taken) for name, taken in samples.items()}, rounds
