"""What the ranks of an ExpertParallel have agreed on, and what of a call does not fit it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .._checks import (
    FLOATS,
    readable,
    require_choice,
    require_inference,
    require_int,
    require_tensor,
)
from .._routing_checks import require_capacity
from ..capacity import Capacity
from ..experts import Experts
from ..gating import Gating
from ..routing import Routing
from .own_capacity import bound_in_words, is_bounded, rows_per_expert
from .placement import Placement, check_ranks

ExchangeKind = Literal["auto", "counted"]


@dataclass(frozen=True)
class Terms:
    """See :class:`ExpertParallel`, whose arguments these are."""

    num_experts: int
    placement: Placement
    gating: Gating
    capacity: Capacity
    hidden_size: int
    dtype: torch.dtype
    max_tokens: int | None
    exchange: ExchangeKind

    @property
    def is_fixed(self) -> bool:
        """Whether the exchange has a static shape."""
        return self.exchange == "auto" and is_bounded(self.capacity, self.num_experts)

    def check(self, num_ranks: int) -> None:
        check_ranks(self.placement, self.num_experts, num_ranks)
        self.gating.check_experts(self.num_experts)
        require_capacity(self.capacity)
        self.capacity.check_experts(self.num_experts)
        require_int("hidden_size", self.hidden_size, minimum=1)
        if self.dtype not in FLOATS:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {self.dtype}")
        require_choice("exchange", self.exchange, get_args(ExchangeKind))
        if self.is_fixed:
            require_int("max_tokens", self.max_tokens, minimum=0)

    def in_words(self) -> dict[str, str]:
        """What must be the same on all ranks."""
        return {
            "num_experts": str(self.num_experts),
            "placement": str(self.placement.experts_of_rank),
            "gating": str(replace(self.gating, scaling=float(self.gating.scaling))),
            "exchange": bound_in_words(self.capacity) if self.is_fixed else "counted",
            "hidden_size": str(self.hidden_size),
            "dtype": str(self.dtype),
        }

    @property
    def capacity_rows(self) -> int | None:
        """C, the rows a fixed exchange has for each (source, expert)."""
        return self._rows(self.capacity) if self.is_fixed else None

    def _rows(self, capacity: Capacity) -> int | None:
        """The most rows that a rank may send for an expert; None where nothing bounds it."""
        if not is_bounded(capacity, self.num_experts):
            return None
        tokens = self.max_tokens or 0
        return rows_per_expert(capacity, self.num_experts, self.gating.top_k, tokens)

    def check_route(self, router_logits: Tensor, gating: Gating | None, capacity: Capacity) -> None:
        """Refuse another gate, and what a fixed exchange has no room for."""
        if gating not in (None, self.gating):
            raise ValueError(f"gating must be the agreed {self.gating}, got {gating}")
        require_capacity(capacity)
        shape = [None, self.num_experts]
        require_tensor("router_logits", router_logits, shape, FLOATS, meaning="T, E")
        room = self.capacity_rows
        if room is None:
            return
        if router_logits.shape[0] > (self.max_tokens or 0):
            raise ValueError(
                f"router_logits must have at most max_tokens={self.max_tokens} tokens,"
                f" got {router_logits.shape[0]}"
            )
        rows = self._rows(capacity)
        if rows is None or rows > room:
            given = "one that bounds nothing" if rows is None else f"{rows}"
            raise ValueError(
                f"capacity must bound every expert to at most {room} rows, as the agreed one does,"
                f" got {given}"
            )

    def check_hidden(self, hidden_states: Tensor) -> None:
        shape = [None, self.hidden_size]
        require_tensor("hidden_states", hidden_states, shape, [self.dtype], meaning="T, H")
        require_inference(hidden_states=hidden_states)

    def check_routing(self, routing: Routing, num_tokens: int) -> None:
        if not isinstance(routing, Routing):
            raise TypeError(f"routing must be capmoe_kernels.Routing, got {type(routing).__name__}")
        ints = [torch.int32]
        require_tensor("routing.rows", routing.rows, [num_tokens, None], ints, meaning="T, K")
        counts, most = routing.tokens_per_expert, self.capacity_rows
        require_tensor("routing.tokens_per_expert", counts, [self.num_experts], ints, meaning="E")
        if most is not None and readable(counts) and int(counts.max()) > most:
            raise ValueError(
                f"routing must keep at most {most} rows of each expert, got {int(counts.max())}"
            )

    def check_outputs(self, y: Tensor, routing: Routing) -> None:
        shape = [routing.row_tokens.shape[0], self.hidden_size]
        require_tensor("y", y, shape, [self.dtype], routing.row_tokens.device, "N, H")
        require_inference(y=y)

    def check_experts(self, experts: Experts | None, own: int) -> None:
        if experts is None and own == 0:
            return
        if not isinstance(experts, Experts):
            what = type(experts).__name__
            raise TypeError(f"local_experts must be capmoe_kernels.Experts, got {what}")
        held = experts.num_experts, experts.hidden_size, experts.down_proj.dtype
        if held != (own, self.hidden_size, self.dtype):
            raise ValueError(
                f"local_experts must be {own} experts of hidden size {self.hidden_size} and"
                f" {self.dtype}, got {held[0]} of {held[1]} and {held[2]}"
            )


def numbers(router_logits: Tensor) -> Tensor:
    """The logits as the ops read them: NaN is -inf, +inf the largest number.

    Where :func:`route` can look at values it would raise, on this rank alone.
    """
    if not readable(router_logits):
        return router_logits
    return router_logits.nan_to_num(nan=-math.inf, neginf=-math.inf)
