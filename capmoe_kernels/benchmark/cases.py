"""The same inputs, weights and routing for all."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..capacity import Capacity
from ..experts import Experts
from ..gating import Gating
from ..routing import Routing
from .loop import Loop
from .models import Shape

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_DROPLESS = Capacity()
_POOL = 1 << 22
_NO_EXPANSION = {
    "drop_score": Capacity().drop_score,
    "expand": "none",
    "extra": 0,
    "local_start": 0,
    "local_stop": 0,
}


def make_experts(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device | None = None,
    random: torch.Generator | None = None,
) -> Experts:
    """Random numbers, repeated: drawing all of them takes seconds. Outputs are of order one."""
    num_experts, hidden, intermediate = shape.experts, shape.hidden, shape.intermediate
    # Odd, so no two experts and no two rows are alike.
    pool = torch.randn(_POOL + 3, generator=random).to(device)

    def fill(rows: int, columns: int) -> Tensor:
        size = num_experts * rows * columns
        scaled = (pool * columns**-0.5).to(dtype)
        repeats = -(-size // scaled.numel())
        out: Tensor = scaled.repeat(repeats)[:size].view(num_experts, rows, columns)
        return out

    return Experts(fill(2 * intermediate, hidden), fill(hidden, intermediate))


def make_inputs(
    shape: Shape,
    dtype: torch.dtype,
    tokens: int,
    skew: float,
    device: torch.device | None = None,
    random: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states [T, H] of ``dtype`` and router logits [T, E] float32.

    An expert's popularity is log-normal: ``skew`` is the deviation of its logarithm, 0 is even.
    """
    popularity = skew * torch.randn(shape.experts, generator=random)
    logits = torch.randn(tokens, shape.experts, generator=random) + popularity
    hidden_states = torch.randn(tokens, shape.hidden, generator=random)
    return hidden_states.to(device, dtype), logits.to(device)


class Case:
    """T tokens of a layer as everyone wants them. Ours gets logits, the others their top-k.

    Attributes:
        x: [T, H].
        logits: [T, E] float32.
        routing: without capacity, by the reference.
        ids: [T, k] int64: the routing's experts.
        weights: [T, k] of ``x``'s dtype.
    """

    def __init__(self, x: Tensor, logits: Tensor, experts: Experts, gating: Gating) -> None:
        self.x, self.logits, self.experts, self.gating = x, logits, experts, gating
        self._gate_options: dict[str, Any] = {**asdict(gating), **_NO_EXPANSION}
        self._gated = reference.gate(logits, None, **self._gate_options)
        self.routing = self._select(self._gated[2], _DROPLESS)
        self.ids = self.routing.expert_ids.long()
        self.weights = self.routing.weights.to(x.dtype)

    @property
    def tokens(self) -> int:
        """T."""
        return self.x.shape[0]

    @cached_property
    def loop(self) -> Loop:
        """The dropless layer as a loop."""
        return Loop(self.x, self.experts, self.routing)

    @cached_property
    def all_weights(self) -> Tensor:
        """[T, E]: what every expert weighs for every token, mostly 0."""
        out = self.x.new_zeros(self.tokens, self.experts.num_experts)
        return out.scatter_(1, self.ids, self.weights)

    def bounded(self, capacity: Capacity) -> Routing:
        """The reference's Token Drop under a capacity factor, of the scores our gate computes.

        Scores of two gates differ in the last bit, which may decide who is the last to be kept.
        Where ours are wrong by more than that, the reference's own count.
        """
        gate = torch.ops.capmoe.gate
        ours: Tensor = gate(self.logits, None, **self._gate_options)[2]
        expected = self._gated[2]
        close = torch.allclose(ours, expected, rtol=1e-5, atol=1e-9)
        return self._select(ours if close else expected, capacity)

    def _select(self, scores: Tensor, capacity: Capacity) -> Routing:
        ids, weights, _ = self._gated
        return Routing(
            *reference.select(
                ids,
                weights,
                scores,
                token_mask=None,
                token_priority=None,
                num_experts=self.experts.num_experts,
                top_k=self.gating.top_k,
                factor=capacity.ratio,
                limit=None,
                rounding=capacity.rounding,
                policy=capacity.policy,
                expand_priority=capacity.expand_priority,
                max_experts_per_token=None,
                reroute_rounds=1,
                experts_per_budget=1,
                seed=capacity.seed,
                kept_weight_sum=None,
                layout="packed",
                row_alignment=1,
                num_rows=ids.numel(),
            )
        )
