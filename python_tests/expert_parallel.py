"""One process that plays every rank, and the ranks: what expert parallelism is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

import capmoe_kernels as cm
from capmoe_kernels.distributed import ExpertParallel, Placement
from capmoe_kernels.integrations.ranks import reseed
from cases import make_experts, normal, router_logits
from checks import assert_close_to_truth

GATING = cm.Gating(top_k=2, renormalize="topk")


@dataclass(frozen=True)
class Layer:
    """A layer whose rank r has ``tokens[r]`` tokens."""

    capacity: cm.Capacity
    tokens: tuple[int, ...] = (24, 9, 0, 17)
    E: int = 8
    placement: Placement | None = None
    gating: cm.Gating = GATING
    dtype: torch.dtype = torch.float32
    H: int = 16
    F: int = 8
    packed: bool = False
    bias: bool = False
    style: str = "skewed"
    options: tuple[str, ...] = ()
    exchange: str = "auto"

    @property
    def world(self):
        return len(self.tokens)

    @property
    def held(self):
        return self.placement or Placement.even(self.E, self.world)

    def hidden(self, rank):
        return normal((self.tokens[rank], self.H), self.dtype, 10 + rank)

    def logits(self, rank):
        return router_logits(self.tokens[rank], self.E, self.style, 20 + rank)

    def experts(self):
        return make_experts(self.E, self.H, self.F, self.dtype, bias=self.bias)

    def local_experts(self, rank):
        own = list(self.held.experts_of_rank[rank])
        if not own:
            return None
        whole = self.experts()
        local = replace(
            whole,
            gate_up_proj=whole.gate_up_proj[own],
            down_proj=whole.down_proj[own],
            gate_up_bias=None if whole.gate_up_bias is None else whole.gate_up_bias[own],
            down_bias=None if whole.down_bias is None else whole.down_bias[own],
        )
        return local.pack() if self.packed else local

    def own_capacity(self, rank):
        """The paper's rule, written down once more: own seed, own experts."""
        capacity = reseed(self.capacity, rank)
        if capacity.expand != "local":
            return capacity
        own = self.held.experts_of_rank[rank]
        local = (min(own), max(own) + 1) if own else (0, 0)
        return replace(capacity, local_experts=local)

    def more(self, rank):
        """token_mask, token_priority, selection_bias of a rank, as asked for."""
        tokens = self.tokens[rank]
        every = {
            "token_mask": torch.arange(tokens) % 5 != 2,
            "token_priority": torch.arange(tokens) % 3,
            "selection_bias": torch.linspace(-0.1, 0.1, self.E),
        }
        return {name: every[name] for name in self.options}

    def routing(self, rank):
        own = self.own_capacity(rank)
        return cm.route(self.logits(rank), self.gating, own, **self.more(rank))

    def expected(self, rank, dtype=None):
        """The rank's tokens in one process; computed in ``dtype`` throughout where given."""
        routing = self.routing(rank)
        experts, hidden = self.experts(), self.hidden(rank)
        if dtype is None:
            return cm.combine(
                cm.grouped_mlp(cm.dispatch(hidden, routing), experts, routing), routing
            )
        weights = [experts.gate_up_proj, experts.down_proj, experts.gate_up_bias, experts.down_bias]
        weights = [None if w is None else w.to(dtype) for w in weights]
        places = (routing.expert_offsets, routing.tokens_per_expert, routing.row_tokens)
        y = cm.reference.grouped_mlp(
            hidden.to(dtype), *weights, *places, experts.activation, experts.layout
        )
        return cm.reference.combine(y, routing.rows, routing.weights)

    def build(self, group=None, **changes):
        options = {
            "gating": self.gating,
            "capacity": self.capacity,
            "hidden_size": self.H,
            "dtype": self.dtype,
            "max_tokens": max(self.tokens),
            "exchange": self.exchange,
        }
        return ExpertParallel(group, self.E, self.placement, **{**options, **changes})

    def check_output(self, rank, out):
        """Floats within the rule; a token that kept nothing is exactly 0."""
        assert out.dtype == self.dtype
        truth, same = self.expected(rank, torch.float64), self.expected(rank)
        assert_close_to_truth(out, truth, same)
        assert not out[(self.routing(rank).rows < 0).all(1)].any()


def same_integers(routing, expected):
    """Two routings of one rank's tokens decide alike; weights within a float32 rounding or two."""
    for name in cm.Routing._fields:
        got, want = getattr(routing, name), getattr(expected, name)
        assert torch.equal(got, want), f"{name}: {got} for {want}"
