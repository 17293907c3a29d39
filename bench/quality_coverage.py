"""How often the page's intervals hold the truth. ``python -m bench.quality_coverage``, seconds.

The 95 % intervals of docs/quality.md come from 15 files, which is few for a bootstrap. Here the
change of every file is drawn from a distribution whose mean is known; a trial counts where the
interval of :func:`paired_change` holds that mean. Files have equal bytes, as on the page. Scale and
place do not matter to the interval of a mean, so only the shape of the distribution does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .quality_statistics import Array, paired_change

FILES, TRIALS, SEED = 15, 1000, 0
Draw = Callable[[np.random.Generator], Array]
SHAPES: dict[str, Draw] = {  # all of mean 0
    "normal": lambda random: random.normal(size=FILES),
    "skewed (exponential)": lambda random: random.exponential(size=FILES) - 1,
}


def coverage(draw: Draw, trials: int = TRIALS) -> float:
    """Share of ``trials`` whose interval holds the mean of what ``draw`` draws from, 0."""
    random = np.random.default_rng(SEED)
    ones = np.ones(FILES)
    held = 0
    for _ in range(trials):
        change = paired_change(draw(random) * math.log(2), np.zeros(FILES), ones)
        held += change.low <= 0 <= change.high
    return held / trials


def main() -> None:
    for shape, draw in SHAPES.items():
        print(f"{shape}: {coverage(draw):.1%} of {TRIALS} intervals hold the mean")


if __name__ == "__main__":
    main()
