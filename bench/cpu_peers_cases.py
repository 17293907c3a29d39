"""The same inputs, weights and routing for all, and whether an answer is right."""

from __future__ import annotations

import torch
from torch import Tensor

import capmoe_kernels as cm

from . import cpu_layer
from .cpu_layer import Case, Loop, Shape, truth

TINY = Shape(64, 64, 8, 2)
SHAPES = {**cpu_layer.SHAPES, "tiny": TINY}  # the last to warm up, and to try things out
CHECKED_TOKENS = 8
OURS_OVER_LOOP, OTHERS_OVER_LOOP = 2, 10  # an error this many times the loop's is wrong
LOOP_OVER_EPS = 16  # and the loop's own may be this many units of its type
FLOAT32_NOISE = 1e-6  # what the order of a sum of 2048 products may do
POOL = 1 << 22


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
        self.loop = Loop(self.case)

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    @property
    def active_experts(self) -> int:
        return int((self.case.routing.tokens_per_expert > 0).sum())


def make_experts(shape: Shape, dtype: torch.dtype) -> cm.Experts:
    """Random numbers, repeated: drawing all of them takes seconds."""
    experts, hidden, intermediate = shape.experts, shape.hidden, shape.intermediate
    pool = torch.randn(POOL + 3)  # odd, so no two experts and no two rows are alike

    def fill(rows: int, columns: int) -> Tensor:
        size = experts * rows * columns
        scaled = (pool * columns**-0.5).to(dtype)
        repeats = -(-size // scaled.numel())
        return scaled.repeat(repeats)[:size].view(experts, rows, columns)

    return cm.Experts(fill(2 * intermediate, hidden), fill(hidden, intermediate))


def make_inputs(shape: Shape, dtype: torch.dtype, tokens: int) -> tuple[Tensor, Tensor]:
    """[T, H] and [T, E]. A token's logits are far apart and exact in 16 bits: nobody sees a tie."""
    order = torch.rand(tokens, shape.experts).argsort(1)
    logits = (order - shape.experts // 2) * (6 / shape.experts)
    return torch.randn(tokens, shape.hidden).to(dtype), logits


class Judge:
    """Answers against float64 in the first rows, and against the loop in all of them."""

    def __init__(self, given: Given, expected: Tensor) -> None:
        self.expected = expected[: given.tokens]
        self.eps = torch.finfo(given.x.dtype).eps
        self.loop_out = given.loop()
        self.loop_error = row_error(self.loop_out[: len(self.expected)], self.expected)
        if not self.loop_error <= LOOP_OVER_EPS * self.eps:
            raise RuntimeError(f"the loop itself is wrong: {self.loop_error:.2g}")

    def error(self, out: Tensor) -> float:
        return row_error(out[: len(self.expected)], self.expected)

    def complaint(self, out: Tensor, factor: int) -> str | None:
        """Why ``out`` is wrong, None if it is right."""
        loop = max(self.loop_error, self.eps / 2, FLOAT32_NOISE)
        error = self.error(out)
        if not error <= factor * loop:
            return f"error {error:.1e}, the loop's {self.loop_error:.1e}"
        apart = row_error(out, self.loop_out)
        if not apart <= (factor + 2) * loop:
            return f"{apart:.1e} off the loop in some row"
        return None


def truth_of(given: Given) -> Tensor:
    return truth(given.case, min(CHECKED_TOKENS, given.tokens))


def row_error(out: Tensor, expected: Tensor) -> float:
    """The largest relative error of a row; NaN stays NaN."""
    out, expected = out.double(), expected.double()
    size = expected.norm(dim=1).clamp_min(1e-30)  # of a token without experts 0
    return float(((out - expected).norm(dim=1) / size).max())
