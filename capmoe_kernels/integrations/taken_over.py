"""A MoE block of a model, run on these kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..capacity import Capacity
from ..experts import Experts
from ..layer import combine, dispatch, grouped_mlp, moe
from ..routing import Routing, select
from .blocks import MoeBlock, MoeParts
from .padding import TokenMask
from .ranks import merge, route_per_rank
from .records import LayerRecord, clock


class TakenOver:
    """What stands in the place of one block's forward.

    Attributes:
        capacity, decode: of a call, and of one with one token per sequence; None is dropless.
        records: where calls are recorded, or None.
    """

    def __init__(self, layer: int, block: MoeBlock, num_ranks: int, token_mask: TokenMask) -> None:
        self.layer, self.block = layer, block
        self.module, self.num_ranks = block.module, num_ranks
        self.capacity: Capacity | None = None
        self.decode: Capacity | None = None
        self.records: list[LayerRecord] | None = None
        self._token_mask = token_mask

    forward: Callable[..., Any]
    """Takes and returns what the replaced forward does."""

    def _capacity_of(self, hidden_states: Tensor) -> Capacity | None:
        return self.decode if self._token_mask.is_decoding(hidden_states) else self.capacity

    def _mask_of(self, hidden_states: Tensor, capacity: Capacity | None) -> Tensor | None:
        return self._token_mask.of(hidden_states, capacity is not None)


class TakenOverBlock(TakenOver):
    """A whole block: its router, its experts, and what it adds to them."""

    def __init__(
        self,
        layer: int,
        block: MoeBlock,
        parts: MoeParts,
        experts: Experts,
        num_ranks: int,
        token_mask: TokenMask,
    ) -> None:
        super().__init__(layer, block, num_ranks, token_mask)
        self._parts, self._experts = parts, experts

    def forward(self, hidden_states: Tensor) -> Any:
        capacity = self._capacity_of(hidden_states)
        mask = self._mask_of(hidden_states, capacity)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        if self.records is None and (self.num_ranks == 1 or capacity is None):
            logits = self._parts.router_logits(tokens)
            out = self._fused(tokens, logits, capacity, mask)
        else:
            out, logits = self._in_steps(tokens, capacity, mask)
        out = out.view(hidden_states.shape)
        return out if self._parts.wrap is None else self._parts.wrap(out, logits)

    def _fused(
        self, tokens: Tensor, logits: Tensor, capacity: Capacity | None, mask: Tensor | None
    ) -> Tensor:
        out = moe(
            tokens,
            logits,
            self._experts,
            self._parts.gating,
            capacity,
            token_mask=mask,
            selection_bias=self._selection_bias(),
        )
        return self._with_shared(out, tokens)

    def _in_steps(
        self, tokens: Tensor, capacity: Capacity | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of the real tokens alone, which the ranks share out among them."""
        real = tokens if mask is None else tokens[mask]
        start = clock(real) if self.records is not None else 0.0
        logits = self._parts.router_logits(real)
        # Without a bound, ranks decide nothing: one call routes them all.
        ranks = self.num_ranks if capacity else 1
        bias = self._selection_bias()
        routings = route_per_rank(logits, self._parts.gating, capacity, ranks, selection_bias=bias)
        out = self._with_shared(_run_experts(real, self._experts, merge(routings)), real)
        if self.records is not None:
            seconds = clock(real) - start
            self.records.append(LayerRecord(self.layer, real.shape[0], seconds, routings))
        if mask is None:
            return out, logits
        return _spread(out, mask), _spread(logits, mask)

    def _selection_bias(self) -> Tensor | None:
        bias = self._parts.selection_bias
        return None if bias is None else bias()

    def _with_shared(self, out: Tensor, tokens: Tensor) -> Tensor:
        shared = self._parts.shared
        return out if shared is None else out + shared(tokens)


class TakenOverExperts(TakenOver):
    """The experts behind a router of the model's own: Token Drop of what it chose."""

    def __init__(
        self,
        layer: int,
        block: MoeBlock,
        experts: Experts,
        num_ranks: int,
        token_mask: TokenMask,
    ) -> None:
        super().__init__(layer, block, num_ranks, token_mask)
        self._experts = experts

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        capacity = self._capacity_of(hidden_states)
        mask = self._mask_of(hidden_states, capacity)
        start = clock(hidden_states) if self.records is not None else 0.0
        routing = select(
            top_k_index,
            top_k_weights.float(),
            self._experts.num_experts,
            capacity,
            token_mask=mask,
        )
        out = _run_experts(hidden_states, self._experts, routing)
        if self.records is not None:
            seconds = clock(hidden_states) - start
            num_tokens = hidden_states.shape[0] if mask is None else int(mask.sum())
            self.records.append(LayerRecord(self.layer, num_tokens, seconds, [routing]))
        return out


class Watched(TakenOver):
    """A block that runs as Transformers runs it, on the real tokens, by the clock."""

    def __init__(
        self,
        layer: int,
        block: MoeBlock,
        theirs: Callable[..., Any],
        token_mask: TokenMask,
        records: list[LayerRecord],
    ) -> None:
        super().__init__(layer, block, 1, token_mask)
        self._theirs, self._seen = theirs, records

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask = self._token_mask.of(hidden_states, bounded=False)
        real = hidden_states
        if mask is not None:
            real = hidden_states.reshape(-1, hidden_states.shape[-1])[mask][None]
        start = clock(real)
        out = self._theirs(real, *args, **kwargs)
        seconds = clock(real) - start
        self._seen.append(LayerRecord(self.layer, real.shape[:-1].numel(), seconds, []))
        return out if mask is None else _spread_first(out, mask, hidden_states)


def _run_experts(tokens: Tensor, experts: Experts, routing: Routing) -> Tensor:
    return combine(grouped_mlp(dispatch(tokens, routing), experts, routing), routing)


def _spread(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows of the real tokens among all; 0 for padding."""
    spread = rows.new_zeros(mask.shape[0], rows.shape[1])
    spread[mask] = rows
    return spread


def _spread_first(out: Any, mask: Tensor, like: Tensor) -> Any:
    """A block's output, or the first of its outputs, among all tokens."""
    if isinstance(out, tuple):
        return (_spread_first(out[0], mask, like), *out[1:])
    return _spread(out[0], mask).view(like.shape)
