"""Changes in bits per byte with their confidence intervals, over files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

Array = NDArray[np.float64]
LEVEL = 0.95
_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float
    high: float

    @property
    def above(self) -> bool:
        """Beyond chance above 0: for a change of the loss, worse."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Beyond chance below 0: for a change of the loss, better."""
        return self.high < 0


def bits_per_byte(nats: Array, num_bytes: Array) -> float:
    """Of all files together."""
    return float(_ratio(nats, num_bytes)) / math.log(2)


def paired_change(nats: Array, base: Array, num_bytes: Array) -> Estimate:
    """How many bits per byte ``nats`` has more than ``base``, both of the same files.

    The interval is SciPy's BCa bootstrap, which draws whole files: what tokens of a file have in
    common, and what the two runs have in common on a file, is in it.

    Args:
        nats, base, num_bytes: [files]; at least two.
    """
    added = (nats - base) / math.log(2)
    value = float(_ratio(added, num_bytes))
    if np.ptp(added / num_bytes) == 0:  # every draw gives the same
        return Estimate(value, value, value)
    found: Any = bootstrap(
        (added, num_bytes),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=LEVEL,
        method="BCa",
        random_state=np.random.default_rng(_SEED),
    )
    low, high = found.confidence_interval
    return Estimate(value, float(low), float(high))


def _ratio(parts: Array, wholes: Array, axis: int = -1) -> Any:
    return parts.sum(axis) / wholes.sum(axis)
