"""What everything is compared with: a loop of ``F.linear`` over experts, and float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..experts import Experts
from ..routing import Routing


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One expert: [N, H] to [N, H] by weights [2F, H] and [H, F]."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


class Loop:
    """One expert after another; what the routing says of each is worked out beforehand."""

    def __init__(self, hidden_states: Tensor, experts: Experts, routing: Routing) -> None:
        self.x, self.experts = hidden_states, experts
        live = routing.rows >= 0
        row_weights = torch.zeros(routing.row_tokens.shape[0], device=hidden_states.device)
        row_weights[routing.rows[live].long()] = routing.weights[live]
        self.parts: list[tuple[int, Tensor, Tensor]] = []
        starts = routing.expert_offsets.tolist()
        for expert, count in enumerate(routing.tokens_per_expert.tolist()):
            if count == 0:
                continue
            rows = slice(starts[expert], starts[expert] + count)
            weights = row_weights[rows, None].to(hidden_states.dtype)
            self.parts.append((expert, routing.row_tokens[rows].long(), weights))

    def __call__(self) -> Tensor:
        """[T, H]."""
        x, experts = self.x, self.experts
        out = torch.zeros_like(x)
        for expert, tokens, weights in self.parts:
            rows = x.index_select(0, tokens)
            y = swiglu(rows, experts.gate_up_proj[expert], experts.down_proj[expert])
            out.index_add_(0, tokens, y * weights)
        return out


def truth(hidden_states: Tensor, experts: Experts, routing: Routing, tokens: int) -> Tensor:
    """The first ``tokens`` rows of the answer, in float64."""
    x = hidden_states[:tokens].double()
    out, kept = torch.zeros_like(x), routing.rows[:tokens] >= 0
    ids, weights = routing.expert_ids[:tokens], routing.weights[:tokens].double()
    for expert in sorted(set(ids[kept].tolist())):
        token, column = torch.where(kept & (ids == expert))
        up, down = experts.gate_up_proj[expert].double(), experts.down_proj[expert].double()
        out.index_add_(0, token, swiglu(x[token], up, down) * weights[token, column, None])
    return out
