"""What bench.gpu runs on: the layers of real models, their inputs, and what no kernel can beat."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels._op_options import gate_options, moe_rows, select_options

from .gpu_roofline import MODELS, SHAPES, Shape, Work, experts_work

GATINGS = {name: model.gating for name, model in MODELS.items()}
DEVICE = "cuda"
SKEW = 0.5  # of the log-normal popularity of experts


def make_experts(shape: Shape) -> cm.Experts:
    """bfloat16 weights whose outputs are of order one."""
    sizes = (shape.experts, shape.hidden, shape.intermediate)
    bf16 = {"dtype": torch.bfloat16, "device": DEVICE}
    up = torch.empty(sizes[0], 2 * sizes[2], sizes[1], **bf16).normal_(0, sizes[1] ** -0.5)
    down = torch.empty(sizes, **bf16).normal_(0, sizes[2] ** -0.5)
    return cm.Experts(up, down)


class Case(NamedTuple):
    """One call: its inputs, and the routing that the kernels under test made of them."""

    shape: Shape
    gating: cm.Gating
    capacity: cm.Capacity
    experts: cm.Experts
    hidden_states: Tensor  # [T, H] bfloat16
    logits: Tensor  # [T, E] float32
    gated: tuple[Tensor, Tensor, Tensor]
    routing: cm.Routing
    y: Tensor  # [N, H] bfloat16: random rows

    @property
    def tokens(self) -> int:
        return self.hidden_states.shape[0]

    @property
    def num_rows(self) -> int:
        return moe_rows(self.tokens, self.shape.top_k, self.capacity, self.shape.experts)


def make_case(
    name: str, experts: cm.Experts, tokens: int, capacity: cm.Capacity, popularity: Tensor
) -> Case:
    shape, gating = SHAPES[name], GATINGS[name]
    hidden = torch.randn(tokens, shape.hidden, device=DEVICE, dtype=torch.bfloat16)
    logits = torch.randn(tokens, shape.experts, device=DEVICE) + popularity
    gated = torch.ops.capmoe.gate(logits, None, *gate_options(gating, capacity, shape.experts))
    routing = cm.route(logits, gating, capacity)
    rows = (routing.row_tokens.shape[0], shape.hidden)
    y = torch.randn(rows, device=DEVICE, dtype=torch.bfloat16)
    return Case(shape, gating, capacity, experts, hidden, logits, gated, routing, y)


def call(case: Case, op: str) -> Tensor | tuple[Tensor, ...]:
    """One op on the case: below the public API, whose checks are the host's and not the GPU's."""
    ops, shape, experts = torch.ops.capmoe, case.shape, case.experts
    gate = gate_options(case.gating, case.capacity, shape.experts)
    select = select_options(case.capacity, shape.experts)
    weights = (experts.gate_up_proj, experts.down_proj, None, None)
    routing = case.routing
    if op == "gate":
        return ops.gate(case.logits, None, *gate)
    if op == "select":
        sizes = (shape.experts, shape.top_k)
        return ops.select(
            *case.gated, None, None, *sizes, *select, None, "packed", 1, case.num_rows
        )
    if op == "dispatch":
        return ops.dispatch(case.hidden_states, routing.row_tokens)
    if op == "grouped_mlp":
        ends = (routing.expert_offsets, routing.tokens_per_expert, routing.row_tokens)
        return ops.grouped_mlp(case.hidden_states, *weights, *ends, "silu", "concat")
    if op == "combine":
        return ops.combine(case.y, routing.rows, routing.weights)
    assert op == "moe", op
    inputs = (case.hidden_states, case.logits, None, *gate, None, None)
    return ops.moe(*inputs, *select, case.num_rows, *weights, "silu", "concat")


OPS = ("gate", "select", "dispatch", "grouped_mlp", "combine", "moe")


def work(case: Case, op: str) -> Work:
    """What the op must at least do on the case's own routing."""
    shape, tokens = case.shape, case.tokens
    counts = case.routing.tokens_per_expert
    rows, busy = int(counts.sum()), int((counts > 0).sum())
    moved = 2 * (tokens + rows) * shape.hidden  # a row of every pair and one of every token
    pairs = 4 * tokens * shape.top_k
    experts = experts_work(shape, tokens, rows, busy)
    ranks = case.capacity.factor is not None  # else nobody asks for scores
    return {
        "gate": Work(0, case.logits.nbytes + 3 * pairs),
        "select": Work(0, (6 if ranks else 5) * pairs + 4 * case.num_rows),
        "dispatch": Work(0, moved),
        "grouped_mlp": Work(experts.flops, experts.bytes - moved),
        "combine": Work(0, moved + 2 * pairs),
        "moe": experts,
    }[op]


def dropless_flops(case: Case) -> float:
    """What others compute, who drop nothing."""
    rows = case.tokens * case.shape.top_k
    return experts_work(case.shape, case.tokens, rows, case.shape.experts).flops


def exact_experts(case: Case, dtype: torch.dtype) -> Tensor:
    """[T, H]: the layer's answer on the case's routing, an expert at a time, in ``dtype``."""
    experts, routing = case.experts, case.routing
    y = torch.zeros(routing.row_tokens.shape[0], case.shape.hidden, device=DEVICE, dtype=dtype)
    starts = routing.expert_offsets.tolist()
    for expert, count in enumerate(routing.tokens_per_expert.tolist()):
        own = slice(starts[expert], starts[expert] + count)
        x = case.hidden_states[routing.row_tokens[own].long()].to(dtype)
        gate, up = F.linear(x, experts.gate_up_proj[expert].to(dtype)).chunk(2, dim=-1)
        y[own] = F.linear(F.silu(gate) * up, experts.down_proj[expert].to(dtype))
    out = torch.zeros(case.tokens, case.shape.hidden, device=DEVICE, dtype=torch.float64)
    for rows, weights in zip(routing.rows.long().unbind(1), routing.weights.unbind(1), strict=True):
        kept = rows >= 0
        out[kept] += weights[kept, None].double() * y[rows[kept]].double()
    return out
