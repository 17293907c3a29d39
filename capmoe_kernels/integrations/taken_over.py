"""A MoE block of a model, run on these kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..capacity import Capacity
from ..experts import Experts
from ..gating import Gating
from ..layer import combine, dispatch, grouped_mlp, moe
from ..routing import Routing, select
from .blocks import MoeBlock, MoeParts
from .padding import TokenMask
from .ranks import merge, route_per_rank
from .records import LayerRecord, clock
from .sources import Reading, read_again


@dataclass(frozen=True, eq=False)
class How:
    """How a model's blocks are taken over.

    Attributes:
        config: the model's configuration, by which a block is read.
        gating: instead of every router's own, or None.
        num_ranks: D.
        pack: whether the experts are packed.
    """

    config: Any
    gating: Gating | None = None
    num_ranks: int = 1
    pack: bool = False


class TakenOver:
    """What stands in the place of one block's forward.

    Attributes:
        name, module: of the block.
        capacity, decode: of a call, and of a step of decoding; None is dropless.
        records: where calls are recorded, or None.
    """

    def __init__(self, layer: int, reading: Reading, how: How, token_mask: TokenMask) -> None:
        self.layer, self.how = layer, how
        self.name, self.module = reading.block.name, reading.block.module
        self.capacity: Capacity | None = None
        self.decode: Capacity | None = None
        self.records: list[LayerRecord] | None = None
        self._token_mask = token_mask
        self._reading: Reading | None = reading

    forward: Callable[..., Any]
    """Takes and returns what the replaced forward does."""

    @property
    def block(self) -> MoeBlock:
        return self._known().block

    def read_again(self) -> Reading:
        """Read the block anew, as it is now."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{self.name} has other weights or modules than when it was taken over: call the"
                " model once before it is compiled again"
            )
        self._reading = read_again(self.name, self.module, self.how.config, self.how.pack)
        return self._reading

    def loaded(self, _module: nn.Module, _keys: Any) -> None:
        """``load_state_dict`` has written into the block: seen so by compiled models, too."""
        if self._reading is not None:
            self._reading.sources.expired = True

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: a copy has a module of its own, to be read once it is whole."""
        return {**vars(self), "_reading": None, "records": None}

    def _known(self) -> Reading:
        if self._reading is None:
            raise RuntimeError(
                f"this is a copy of {self.name} without the model that was taken over: undo(model)"
                " before you, or PEFT, copy a block of it"
            )
        return self._reading

    def _current(self, hidden_states: Tensor) -> Reading:
        """What the block is made of in this call.

        Raises:
            RuntimeError: autograd would record the call.
            ValueError: the block has changed into one that can't be run.
        """
        reading = self._known()
        if not reading.sources.unchanged():
            reading = self.read_again()
        if torch.is_grad_enabled() and (
            hidden_states.requires_grad or reading.sources.requires_grad()
        ):
            raise RuntimeError(
                f"{self.name} requires grad, but capmoe_kernels is inference-only: call the model"
                " under torch.no_grad() or torch.inference_mode(), or undo(model) first"
            )
        return reading

    def _capacity_of(self, hidden_states: Tensor) -> Capacity | None:
        return self.decode if self._token_mask.is_decoding(hidden_states) else self.capacity

    def _mask_of(self, hidden_states: Tensor, capacity: Capacity | None) -> Tensor | None:
        bounded, counted = capacity is not None, self.records is not None
        return self._token_mask.of(hidden_states, bounded=bounded, counted=counted)


class TakenOverBlock(TakenOver):
    """A whole block: its router, its experts, and what it adds to them."""

    def forward(self, hidden_states: Tensor) -> Any:
        reading = self._current(hidden_states)
        parts: Any = reading.block.parts
        capacity = self._capacity_of(hidden_states)
        mask = self._mask_of(hidden_states, capacity)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        if self.records is None and (self.how.num_ranks == 1 or capacity is None):
            logits = parts.router_logits(tokens)
            out = moe(
                tokens,
                logits,
                reading.experts,
                self.how.gating or parts.gating,
                capacity,
                token_mask=mask,
                selection_bias=_selection_bias(parts),
            )
            out = _with_shared(parts, out, tokens, mask)
        else:
            out, logits = self._in_steps(tokens, reading, capacity, mask)
        out = out.view(hidden_states.shape)
        return out if parts.wrap is None else parts.wrap(out, logits)

    def _in_steps(
        self, tokens: Tensor, reading: Reading, capacity: Capacity | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of the real tokens alone, which the ranks share out among them."""
        parts: Any = reading.block.parts
        real = tokens if mask is None else tokens[mask]
        start = clock(real) if self.records is not None else 0.0
        logits = parts.router_logits(real)
        routings = route_per_rank(
            logits,
            self.how.gating or parts.gating,
            capacity,
            self.how.num_ranks if capacity else 1,  # without a bound ranks decide nothing
            selection_bias=_selection_bias(parts),
        )
        out = _run_experts(real, reading.experts, merge(routings))
        out = _with_shared(parts, out, real, None)
        if self.records is not None:
            seconds = clock(real) - start
            self.records.append(LayerRecord(self.layer, real.shape[0], seconds, routings))
        if mask is None:
            return out, logits
        return _spread(out, mask), _spread(logits, mask)


class TakenOverExperts(TakenOver):
    """The experts behind a router of the model's own: Token Drop of what it chose."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        reading = self._current(hidden_states)
        capacity = self._capacity_of(hidden_states)
        mask = self._mask_of(hidden_states, capacity)
        start = clock(hidden_states) if self.records is not None else 0.0
        routing = select(
            top_k_index,
            top_k_weights.float(),
            reading.experts.num_experts,
            capacity,
            token_mask=mask,
        )
        out = _run_experts(hidden_states, reading.experts, routing)
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
        reading: Reading,
        theirs: Callable[..., Any],
        token_mask: TokenMask,
        records: list[LayerRecord],
    ) -> None:
        super().__init__(layer, reading, How(config=None), token_mask)
        self._theirs, self._seen = theirs, records

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask = self._token_mask.of(hidden_states, bounded=False, counted=True)
        real = hidden_states
        if mask is not None:
            real = hidden_states.reshape(-1, hidden_states.shape[-1])[mask][None]
        start = clock(real)
        out = self._theirs(real, *args, **kwargs)
        seconds = clock(real) - start
        self._seen.append(LayerRecord(self.layer, real.shape[:-1].numel(), seconds, []))
        return out if mask is None else _spread_first(out, mask, hidden_states)


def _selection_bias(parts: MoeParts) -> Tensor | None:
    return None if parts.selection_bias is None else parts.selection_bias()


def _with_shared(parts: MoeParts, out: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Padding stays 0, as it is without shared experts."""
    if parts.shared is None:
        return out
    shared = parts.shared(tokens)
    if mask is not None:
        shared = torch.where(mask[:, None], shared, 0.0)
    return out + shared


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
