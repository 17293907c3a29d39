"""Candidates from safe to risky, and the last of them whose measured loss fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .curves import Choice
from .knapsack import solve
from .measured import Factors

# Layers' losses add up only about, so budgets go up to twice the bound, in so many steps.
REACH = 2.0
_BUDGETS = 64
# Uniform factors between the loosest and the tightest of the grid; 2 % apart for a range of 12.
_UNIFORM = 128
# Candidates that are validated.
_STEPS = 12


@dataclass(frozen=True)
class Candidate:
    """Factors that may be used.

    Attributes:
        factors: of every layer.
        budget: what the layers' losses alone may sum to; None for a uniform factor.
        predicted: what they do sum to; None for a uniform factor.
    """

    factors: Factors
    budget: float | None = None
    predicted: float | None = None


def per_layer_candidates(curves: Sequence[Sequence[Choice]], max_loss: float) -> list[Candidate]:
    """Dropless, then the answers for growing budgets, each once."""
    found = [Candidate((None,) * len(curves), 0.0, 0.0)]
    times = [[choice.busiest for choice in curve] for curve in curves]
    losses = [[choice.charged for choice in curve] for curve in curves]
    for step in range(1, _BUDGETS + 1):
        budget = REACH * max_loss * step / _BUDGETS
        chosen = [curve[at] for curve, at in zip(curves, solve(times, losses, budget), strict=True)]
        factors = tuple(choice.factor for choice in chosen)
        if factors != found[-1].factors:
            predicted = sum(choice.charged for choice in chosen)
            found.append(Candidate(factors, budget, predicted))
    return found


def uniform_candidates(num_layers: int, grid: Sequence[float]) -> list[Candidate]:
    """Dropless, then one factor for all layers, in even ratios from the grid's loosest down.

    The grid's own factors are among them.
    """
    positive = [factor for factor in grid if factor > 0]
    ratio = positive[-1] / positive[0] if positive else 1.0
    between = {
        round(positive[0] * ratio ** (step / (_UNIFORM - 1)), 2)
        for step in range(_UNIFORM)
        if positive
    }
    between = {factor for factor in between if positive[-1] <= factor <= positive[0]}
    factors = sorted(between | set(grid), reverse=True)
    return [
        Candidate((None,) * num_layers),
        *[Candidate((factor,) * num_layers) for factor in factors],
    ]


def last_that_fits(number: int, cost: Callable[[int], float], max_loss: float) -> int:
    """The last of ``number`` candidates that costs at most ``max_loss``; the first costs nothing.

    By bisection: once a candidate is found too costly, no riskier one is looked at.
    """
    fits, fails = 0, number
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if cost(middle) <= max_loss:
            fits = middle
        else:
            fails = middle
    return fits


def path_to(best: int, losses: Mapping[int, float]) -> list[int]:
    """Indices of the candidates that are validated, safest first, ``best`` last.

    In even steps of the loss on the calibration text, between whose measured ``losses`` by index,
    which have 0 and ``best``, it is interpolated.
    """
    import numpy as np

    known = sorted(index for index in losses if index <= best)
    rising = np.maximum.accumulate([losses[index] for index in known])
    between = np.interp(range(best + 1), known, rising)
    steps = np.linspace(0, rising[-1], _STEPS + 1)[1:-1]
    path = {int(np.searchsorted(between, step, side="right")) - 1 for step in steps} | {best}
    return sorted(path - {0})
