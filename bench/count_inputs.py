"""What is counted in the emulator: the ops on the routing of real models, as calls.

The experts are two of the model's, each with the model's mean number of rows, H=F=512: the full
size would take hours. The layer that routes has experts as small as can be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels._op_options import gate_options, moe_rows, select_options

from .gpu_cases import GATINGS, SKEW
from .gpu_roofline import SHAPES, Shape

HIDDEN, INTERMEDIATE, EXPERTS = 512, 512, 2  # of the experts that are counted


def logits_of(shape: Shape, tokens: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(tokens, shape.experts) + SKEW * torch.randn(shape.experts)


class Routed:
    """The calls that route one model's tokens."""

    def __init__(self, model: str, tokens: int, factor: float | None):
        self.shape, gating, self.capacity = SHAPES[model], GATINGS[model], cm.Capacity(factor)
        self.logits = logits_of(self.shape, tokens)
        self.gating = gate_options(gating, self.capacity, self.shape.experts)

    def layer(self) -> Tensor:
        experts, tokens = self.shape.experts, self.logits.shape[0]
        up, down = torch.zeros(experts, 16, 8), torch.zeros(experts, 8, 8)
        rows = moe_rows(tokens, self.shape.top_k, self.capacity, experts)
        select = (None, None, *select_options(self.capacity, experts), rows)
        inputs = (torch.zeros(tokens, 8), self.logits, None, *self.gating, *select)
        out: Tensor = torch.ops.capmoe.moe(*inputs, up, down, None, None, "silu", "concat")
        return out

    def gate(self) -> tuple[Tensor, Tensor, Tensor]:
        out: tuple[Tensor, Tensor, Tensor] = torch.ops.capmoe.gate(self.logits, None, *self.gating)
        return out

    def select(self, ids: Tensor, weights: Tensor) -> cm.Routing:
        """Of a caller's own top-k."""
        return cm.select(ids, weights, self.shape.experts, self.capacity)


def moving_calls(model: str, tokens: int) -> dict[str, Callable[[], Tensor]]:
    """dispatch and combine, bfloat16, at the model's own width."""
    shape = SHAPES[model]
    routing = cm.route(logits_of(shape, tokens), GATINGS[model])
    hidden = torch.ones(tokens, shape.hidden, dtype=torch.bfloat16)
    y = torch.ones(tokens * shape.top_k, shape.hidden, dtype=torch.bfloat16)
    return {
        "dispatch": lambda: cm.dispatch(hidden, routing),
        "combine": lambda: cm.combine(y, routing),
    }


def expert_rows_of(model: str, tokens: int) -> int:
    """Of each expert, on average."""
    shape = SHAPES[model]
    return max(1, tokens * shape.top_k // shape.experts)


def experts_call(model: str, tokens: int) -> Callable[[], Tensor]:
    """Both launches of the experts, bfloat16, with a gather."""
    each = expert_rows_of(model, tokens)
    rows = each * EXPERTS
    up = torch.zeros(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=torch.bfloat16)
    down = torch.zeros(EXPERTS, HIDDEN, INTERMEDIATE, dtype=torch.bfloat16)
    x, order = torch.zeros(rows, HIDDEN, dtype=torch.bfloat16), torch.arange(rows).int().flip(0)
    ends = (torch.arange(EXPERTS + 1).int() * each, torch.full((EXPERTS,), each).int(), order)
    inputs = (x, up, down, None, None, *ends, "silu", "concat")
    return lambda: torch.ops.capmoe.grouped_mlp(*inputs)
