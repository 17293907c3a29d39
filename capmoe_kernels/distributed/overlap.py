"""Where to put the experts among other work, so that the exchanges hide behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class OverlapPlan(NamedTuple):
    """The best place for the experts."""

    position: int
    """The experts run after this many pieces of the other work."""
    exposed: float
    """Time spent waiting for the exchanges, in the unit of the arguments."""


def overlap_plan(comp: Sequence[float], t_dispatch: float, t_combine: float) -> OverlapPlan:
    """Choose how much of the other work runs beside the dispatch, the rest beside the combine.

    ScMoE's schedule (arXiv 2404.05019, equation 11): dispatch is issued first and combine waited
    for last; in between, the experts stand before, among or after the other work's pieces. Its
    formula also counts time in which a link idles; this counts exposed time only,
    ``max(0, t_dispatch - before) + max(0, t_combine - after)``.

    Args:
        comp: how long each piece of the other work takes, in the order in which it runs.
        t_dispatch, t_combine: how long the exchanges take.

    Returns:
        The position from 0 to len(comp) with the least exposed time; of equals, the first.

    Raises:
        ValueError: a time that is negative or not finite.
    """
    for name, times in (("comp", comp), ("t_dispatch", [t_dispatch]), ("t_combine", [t_combine])):
        if not all(math.isfinite(time) and time >= 0 for time in times):
            raise ValueError(f"{name} must be of finite times >= 0, got {times}")
    before = list(accumulate(comp, initial=0.0))
    after = list(accumulate(reversed(comp), initial=0.0))[::-1]
    plans = [
        OverlapPlan(at, max(0.0, t_dispatch - before[at]) + max(0.0, t_combine - after[at]))
        for at in range(len(comp) + 1)
    ]
    return min(plans, key=lambda plan: plan.exposed)
