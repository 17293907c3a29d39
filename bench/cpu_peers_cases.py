"""The same inputs, weights and routing for all, and whether an answer is right."""

from __future__ import annotations

import torch
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.benchmark import judge
from capmoe_kernels.benchmark.cases import make_experts as make_experts
from capmoe_kernels.benchmark.loop import Loop, truth
from capmoe_kernels.benchmark.models import TINY as TINY_PRESET
from capmoe_kernels.benchmark.models import Shape

from . import cpu_layer
from .cpu_layer import Case

TINY = TINY_PRESET.shape
SHAPES = {**cpu_layer.SHAPES, "tiny": TINY}  # the last to warm up, and to try things out
CHECKED_TOKENS = 8


class Given:
    """T tokens of a layer as everyone wants them. Ours gets logits, the others their top-k."""

    def __init__(
        self,
        x: Tensor,
        logits: Tensor,
        experts: cm.Experts,
        top_k: int,
        capacity: cm.Capacity | None = None,
    ) -> None:
        self.x, self.logits, self.capacity = x, logits, capacity
        self.gating = cm.Gating(top_k=top_k, renormalize="topk")
        self.gate_up, self.down = experts.gate_up_proj, experts.down_proj
        self.num_experts = experts.num_experts
        weights, self.ids = logits.softmax(-1).topk(top_k)
        self.weights32 = weights / weights.sum(-1, keepdim=True)
        self.weights = self.weights32.to(x.dtype)
        self.ids32 = self.ids.int()
        if capacity is None:
            routing = cm.select(self.ids32, self.weights32, self.num_experts)
        else:
            routing = cm.route(logits, self.gating, capacity)
        self.case = Case(x, experts, routing)
        self.loop = Loop(*self.case)

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    @property
    def active_experts(self) -> int:
        return int((self.case.routing.tokens_per_expert > 0).sum())


def make_inputs(shape: Shape, dtype: torch.dtype, tokens: int) -> tuple[Tensor, Tensor]:
    """[T, H] and [T, E]. A token's logits are far apart and exact in 16 bits: nobody sees a tie."""
    order = torch.rand(tokens, shape.experts).argsort(1)
    logits = (order - shape.experts // 2) * (6 / shape.experts)
    return torch.randn(tokens, shape.hidden).to(dtype), logits


class Judge(judge.Judge):
    """Answers against float64 in the first rows, and against the loop in all of them."""

    def __init__(self, given: Given, expected: Tensor) -> None:
        super().__init__(given.loop(), expected[: given.tokens])


def truth_of(given: Given) -> Tensor:
    return truth(*given.case, min(CHECKED_TOKENS, given.tokens))
