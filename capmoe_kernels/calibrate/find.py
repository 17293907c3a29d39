"""The search itself, on anything that can be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .curves import Choice, measure_curves
from .measured import Factors, Measure, Measured, loss, once, step_time
from .search import (
    REACH,
    Candidate,
    last_that_fits,
    path_to,
    per_layer_candidates,
    uniform_candidates,
)
from .validate import Verdict, validate


@dataclass(frozen=True)
class Tried:
    """A candidate on the calibration text; ``time`` is relative to dropless, as ``loss`` is."""

    candidate: Candidate
    loss: float
    time: float


@dataclass(frozen=True, eq=False)
class Answer:
    """The best of one kind of candidates, per layer or uniform.

    Attributes:
        tried: all that were measured on the calibration text, safest first; dropless is the first,
            and per layer the best uniform factor the last where it is quicker than the rest.
        best: of these, the riskiest whose loss fits.
        verdicts: of the validation text, safest first, up to the first that fails.
    """

    tried: list[Tried]
    best: Tried
    verdicts: list[Verdict]

    @property
    def proven(self) -> Verdict | None:
        """The riskiest candidate that saves time and is confirmed; None: stay dropless."""
        return next(
            (each for each in reversed(self.verdicts) if each.holds and each.time < 1), None
        )

    @property
    def proven_time(self) -> float:
        return 1.0 if self.proven is None else self.proven.time


@dataclass(frozen=True, eq=False)
class Found:
    """What :func:`find` found.

    Attributes:
        curves: every layer's choices, measured alone.
        calibration, validation: the texts without capacity.
        per_layer, uniform: the best of each kind.
        chosen: ``"per_layer"`` or ``"uniform"``, whichever takes less time as far as the
            validation text confirms it; the latter where they are alike.
    """

    curves: list[list[Choice]]
    calibration: Measured
    validation: Measured
    per_layer: Answer
    uniform: Answer
    chosen: str

    @property
    def answer(self) -> Answer:
        return self.per_layer if self.chosen == "per_layer" else self.uniform

    @property
    def factors(self) -> Factors:
        """Of every layer; all None where nothing is confirmed."""
        proven = self.answer.proven
        return (None,) * len(self.curves) if proven is None else proven.candidate.factors


def find(
    measures: tuple[Measure, Measure, Measure],
    num_layers: int,
    grid: Sequence[float],
    max_loss: float,
    confidence: float,
    drops: Callable[[int, float], bool] = lambda layer, factor: True,
    say: Callable[[str], None] = lambda what: None,
) -> Found:
    """The factors of least time whose loss is within ``max_loss``.

    Args:
        measures: of the sample, the calibration text and the validation text.
        num_layers, grid, drops: see :func:`~.curves.measure_curves`.
        max_loss: relative to dropless.
        confidence: that neither answer loses more than ``max_loss``.
        say: told what is done next.
    """
    grid = sorted(set(grid), reverse=True)
    curves = measure_curves(measures[0], num_layers, grid, drops, REACH * max_loss, say)
    texts = once(measures[1]), once(measures[2])
    # The better of two is taken after both were tested, so each has half of the chance to err.
    level = 1 - (1 - confidence) / 2

    def answer(name: str, candidates: Sequence[Candidate], seed: Tried | None = None) -> Answer:
        say(f"{name}, on the calibration text")
        best, tried = _try(candidates, texts[0], max_loss)
        path = [candidates[at] for at in path_to(best, {at: tried[at].loss for at in tried})]
        results = [tried[at] for at in sorted(tried)]
        riskiest = tried[best]
        if seed is not None and seed.time < riskiest.time:
            path.append(seed.candidate)
            results.append(seed)
            riskiest = seed
        say(f"{name}, on the validation text")
        return Answer(results, riskiest, validate(path, texts[1], max_loss, level))

    uniform = answer("uniform", uniform_candidates(num_layers, grid))
    layers = answer("per layer", per_layer_candidates(curves, max_loss), uniform.best)
    return Found(
        curves,
        calibration=texts[0]((None,) * num_layers),
        validation=texts[1]((None,) * num_layers),
        per_layer=layers,
        uniform=uniform,
        chosen="per_layer" if layers.proven_time < uniform.proven_time else "uniform",
    )


def _try(
    candidates: Sequence[Candidate], measure: Measure, max_loss: float
) -> tuple[int, dict[int, Tried]]:
    """(the last that fits, all that were measured by their index)."""
    dropless = measure(candidates[0].factors)
    tried = {0: Tried(candidates[0], 0.0, 1.0)}

    def cost(index: int) -> float:
        found = measure(candidates[index].factors)
        tried[index] = Tried(candidates[index], loss(found, dropless), step_time(found, dropless))
        return tried[index].loss

    return last_that_fits(len(candidates), cost, max_loss), tried
