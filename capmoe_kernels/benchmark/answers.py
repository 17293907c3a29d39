"""What a contender's answer is compared with, and how much work the answer takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..capacity import Capacity
from .cases import Case
from .contenders import Contender, dense_weights
from .judge import Judge
from .loop import Loop, swiglu, truth

CHECKED_TOKENS = 8  # in float64; all others against the loop
_PART_TOKENS = 100


class Answer(NamedTuple):
    """The right answer of some contenders.

    Attributes:
        judge: of the answers.
        kept_rows: rows that a capacity keeps; None where nothing is bounded.
        busiest: the most rows of an expert, over the mean asked for; None likewise.
    """

    judge: Judge
    kept_rows: int | None = None
    busiest: float | None = None


class Answers:
    """The right answers of one case, each worked out once."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._found: dict[tuple[bool, float | None], Answer] = {}

    def of(self, contender: Contender) -> Answer:
        """Of one contender."""
        key = contender.dense, contender.factor
        if key not in self._found:
            self._found[key] = self._work_out(*key)
        return self._found[key]

    def _work_out(self, dense: bool, factor: float | None) -> Answer:
        case, tokens = self._case, min(CHECKED_TOKENS, self._case.tokens)
        if dense:
            return Answer(_dense_judge(case, tokens))
        if factor is None:
            return Answer(Judge(case.loop(), truth(case.x, case.experts, case.routing, tokens)))
        routing = case.bounded(Capacity(factor=factor))
        loop = Loop(case.x, case.experts, routing)
        judge = Judge(loop(), truth(case.x, case.experts, routing, tokens))
        kept = routing.tokens_per_expert
        return Answer(judge, int(kept.sum()), busiest(kept, routing.demand_per_expert))


def _dense_judge(case: Case, tokens: int) -> Judge:
    """All rows against the same MLP in parts, so that products of another size compute them."""
    up, down = dense_weights(case.experts, case.gating.top_k)
    parts = [swiglu(part, up, down) for part in torch.split(case.x, _PART_TOKENS)]
    expected = swiglu(case.x[:tokens].double(), up.double(), down.double())
    return Judge(torch.cat(parts), expected)


def busiest(load: Tensor, demand: Tensor) -> float:
    """The most rows of an expert, over the mean asked for: the straggler number."""
    return int(load.max()) * demand.numel() / int(demand.sum())
