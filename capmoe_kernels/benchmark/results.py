"""What a run found, and the numbers that follow from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property

from .contenders import LOOP


@dataclass(frozen=True)
class Result:
    """One contender on one number of tokens.

    Attributes:
        key, name: who.
        factor: of the capacity; None: unbounded.
        reason: why it was not timed; None: it was.
        error: the largest relative error of a row, of those checked in float64.
        samples: seconds of each call.
        rows: that its experts compute; None: it has no experts, or never ran.
        work: multiplications, of those of the unbounded layer.
        busiest: the most rows of an expert under a capacity, over the mean asked for.
    """

    key: str
    name: str
    factor: float | None = None
    reason: str | None = None
    error: float | None = None
    samples: tuple[float, ...] = ()
    rows: int | None = None
    work: float | None = None
    busiest: float | None = None

    @property
    def median(self) -> float | None:
        """Seconds."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Seconds that a quarter of the samples are below, and above."""
        if len(self.samples) < 2:
            return None
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Cell:
    """Everyone on the same T tokens.

    Attributes:
        tokens: T.
        demand: pairs that ask for each expert, before capacity.
        busiest: the most of them, over their mean.
        results: in the table's order.
    """

    tokens: int
    demand: list[int]
    busiest: float
    results: list[Result]

    @cached_property
    def _loop(self) -> float | None:
        return next((each.median for each in self.results if each.key == LOOP), None)

    def speed(self, result: Result) -> float | None:
        """How many times as fast as the loop."""
        if self._loop is None or not result.median:
            return None
        return self._loop / result.median
