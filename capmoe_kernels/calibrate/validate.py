"""Candidates on text that chose none of them, in an order that needs no correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .confidence import upper_limit
from .measured import Measure, Measured, loss, step_time
from .search import Candidate


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the validation text says of a candidate.

    Attributes:
        candidate: the one.
        measured: the pass.
        loss, upper: relative loss, and the upper end of its one-sided confidence interval.
        time: relative to dropless, of steps that wait for the busiest.
        holds: whether both ``loss`` and ``upper`` are within the bound.
    """

    candidate: Candidate
    measured: Measured
    loss: float
    upper: float
    time: float
    holds: bool


def validate(
    path: Sequence[Candidate], measure: Measure, max_loss: float, level: float
) -> list[Verdict]:
    """Verdicts in the order of ``path``, which is safest first, up to the first that fails.

    Every test is at ``level``, and not corrected for their number: with an order that is fixed
    before the validation text is read, and a stop at the first failure, the chance that any passes
    wrongly is that of one test (fixed-sequence testing, as in Learn then Test, arXiv 2110.01052).
    """
    verdicts: list[Verdict] = []
    for candidate in path:
        dropless = measure((None,) * len(candidate.factors))
        found = measure(candidate.factors)
        cost = loss(found, dropless)
        upper = upper_limit(found.nats, dropless.nats, level)
        holds = cost <= max_loss and upper <= max_loss
        verdicts.append(Verdict(candidate, found, cost, upper, step_time(found, dropless), holds))
        if not holds:
            break
    return verdicts
