"""The exact answer to: one choice for each layer, least time in all, losses within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Losses become whole parts of the budget, rounded up: in whole numbers HiGHS' tolerance of 1e-6
# decides nothing, so no answer is over the budget.
_PARTS = 10**6


def solve(
    times: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """The multiple-choice knapsack, by scipy's HiGHS.

    Args:
        times: for each layer, the time of each of its choices.
        losses: for each layer, the loss of each of its choices, >= 0. The first choice of a layer
            loses nothing, so there is an answer.
        budget: of the sum of losses, >= 0.

    Returns:
        For each layer, the index of its choice. Losses are rounded up to 1e-6 of the budget.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    parts = [[_parts(loss, budget) for loss in layer] for layer in losses]
    sizes = [len(layer) for layer in times]
    columns = [(layer, choice) for layer, size in enumerate(sizes) for choice in range(size)]
    affordable = [float(parts[layer][choice] <= _PARTS) for layer, choice in columns]
    of_layer = csr_array(
        ([1.0] * len(columns), ([layer for layer, _ in columns], range(len(columns))))
    )
    costs = [[float(min(parts[layer][choice], _PARTS)) for layer, choice in columns]]
    found = milp(
        np.array([times[layer][choice] for layer, choice in columns], dtype=float),
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, np.array(affordable)),
        constraints=[LinearConstraint(of_layer, 1, 1), LinearConstraint(costs, -np.inf, _PARTS)],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise RuntimeError(f"HiGHS found no answer: {found.message}")
    chosen = [at for at, used in zip(columns, found.x > 0.5, strict=True) if used]
    return [choice for _, choice in chosen]


def _parts(loss: float, budget: float) -> int:
    if loss <= 0:
        return 0
    # More than the budget is all the same.
    return math.ceil(min(loss / budget, 2.0) * _PARTS) if budget > 0 else 2 * _PARTS
