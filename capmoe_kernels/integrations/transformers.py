"""Let a Hugging Face Transformers model run its MoE blocks on these kernels, with a capacity.

    with apply(model, Capacity(factor=1.5)):
        model(input_ids)

Weights are shared, not copied, and ``undo`` gives the model back exactly as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..capacity import Capacity
from ..experts import Experts
from ..layer import combine, dispatch, grouped_mlp
from ..routing import Routing
from . import olmoe  # noqa: F401  registers itself
from .blocks import MoeBlock, MoeParts, check_supported, find_moe_blocks, supported
from .ranks import check_ranks, merge, reseed, route_per_rank

__all__ = [
    "Applied",
    "LayerRecord",
    "apply",
    "check_supported",
    "find_moe_blocks",
    "supported",
    "watch",
]

# Tokens [T, H] to their output [T, H] and to each rank's routing, where there is one.
_Layer = Callable[[Tensor], tuple[Tensor, list[Routing]]]


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """One call of one MoE block.

    Attributes:
        layer: which block, from 0.
        num_tokens: T, padding not counted.
        seconds: spent in the block.
        routings: one per rank; empty for a block that Transformers ran.
    """

    layer: int
    num_tokens: int
    seconds: float
    routings: list[Routing]

    @property
    def demand_per_expert(self) -> Tensor:
        """[E] int64: pairs asked for by the top-k of all ranks, before capacity."""
        return torch.stack([routing.demand_per_expert for routing in self.routings]).sum(0)

    @property
    def tokens_per_expert(self) -> Tensor:
        """[E] int64: pairs of all ranks that the experts ran."""
        return torch.stack([routing.tokens_per_expert for routing in self.routings]).sum(0)


@dataclass(eq=False)
class Applied:
    """MoE blocks whose ``forward`` is replaced until :meth:`undo`; also a context manager.

    Attributes:
        records: what was recorded, oldest first; yours to read and to clear.
        token_mask: [B, S] bool, False for padding, for the calls to come. Blocks then see the real
            tokens only, and return 0 for the others. None: all are real.
    """

    blocks: list[MoeBlock]
    record: bool
    records: list[LayerRecord] = field(default_factory=list)
    token_mask: Tensor | None = None
    # Each block's module: the forward it has from us, and the one it had, if it had one of its own.
    _replaced: dict[nn.Module, tuple[Any, Any]] = field(default_factory=dict)

    def replace(self, layer: int, run: _Layer) -> None:
        """Let ``run`` do the work of block ``layer``."""

        def forward(hidden_states: Tensor) -> Tensor:
            tokens = self._tokens(hidden_states)
            if not self.record:  # no clock, which a compiler could not trace
                return self._padded(run(tokens)[0], hidden_states)
            start = _clock(tokens)
            out, routings = run(tokens)
            seconds = _clock(tokens) - start
            self.records.append(LayerRecord(layer, tokens.shape[0], seconds, routings))
            return self._padded(out, hidden_states)

        module = self.blocks[layer].module
        # An attribute of the instance hides the method of the class, and undoes without a trace.
        self._replaced[module] = (forward, module.__dict__.get("forward"))
        module.forward = forward

    def undo(self) -> None:
        """Give every block its own forward back. A second call does nothing.

        Raises:
            RuntimeError: another ``apply`` or ``watch`` came after this one: undo that one first.
        """
        if any(
            vars(module).get("forward") is not ours for module, (ours, _) in self._replaced.items()
        ):
            raise RuntimeError("the model was taken over again since: undo the latest first")
        while self._replaced:
            module, (_, before) = self._replaced.popitem()
            del module.forward
            if before is not None:
                module.forward = before

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def _tokens(self, hidden_states: Tensor) -> Tensor:
        if self.token_mask is None:
            return hidden_states.reshape(-1, hidden_states.shape[-1])
        return hidden_states[self.token_mask]

    def _padded(self, out: Tensor, hidden_states: Tensor) -> Tensor:
        if self.token_mask is None:
            return out.view(hidden_states.shape)
        padded = torch.zeros_like(hidden_states)
        padded[self.token_mask] = out
        return padded


def apply(
    model: nn.Module,
    capacity: Capacity | None = None,
    *,
    num_ranks: int = 1,
    record: bool = False,
    pack: bool = False,
) -> Applied:
    """Take over every MoE block of ``model`` until ``undo``.

    Args:
        model: a Transformers model of a supported architecture, in inference.
        capacity: of every block; None is dropless. ``seed`` is moved on from block to block.
            For decoding, where a step has few tokens, you may want None: see :class:`Capacity`.
        num_ranks: D > 1 bounds the load as D expert-parallel ranks would, each for its own tokens:
            see :func:`~capmoe_kernels.integrations.ranks.route_per_rank`.
        record: keep a :class:`LayerRecord` of every call, in ``records``.
        pack: run on :meth:`Experts.pack` of the weights: faster on a CPU, where it is a second copy
            of them that later changes of the model's weights don't reach.

    Raises:
        ValueError: the architecture is not supported, has no MoE block, D does not divide E, or the
            model's configuration asks for router logits, which blocks taken over do not give (so
            do not pass ``output_router_logits=True`` to a call either).
    """
    blocks = find_moe_blocks(model)
    if getattr(model.config, "output_router_logits", False):
        raise ValueError("set model.config.output_router_logits = False before apply")
    layers = []
    for layer, block in enumerate(blocks):
        check_ranks(num_ranks, block.parts.experts.num_experts)
        own = capacity and reseed(capacity, layer * num_ranks)
        experts = block.parts.experts.pack() if pack else block.parts.experts.concat()
        layers.append(_ours(block.parts, experts, own, num_ranks))
    applied = Applied(blocks, record)
    for layer, run in enumerate(layers):
        applied.replace(layer, run)
    return applied


def watch(model: nn.Module) -> Applied:
    """Record every MoE block as Transformers runs it: the time it takes, on the real tokens.

    Raises:
        ValueError: the architecture is not supported or has no MoE block.
    """
    applied = Applied(find_moe_blocks(model), record=True)
    for layer, block in enumerate(applied.blocks):
        applied.replace(layer, _theirs(block.module))
    return applied


def _clock(tokens: Tensor) -> float:
    if tokens.is_cuda:  # whose work is asynchronous
        torch.cuda.synchronize(tokens.device)
    return time.perf_counter()


def _ours(parts: MoeParts, experts: Experts, capacity: Capacity | None, num_ranks: int) -> _Layer:
    def run(tokens: Tensor) -> tuple[Tensor, list[Routing]]:
        logits = parts.router_logits(tokens)
        # Without a bound, ranks decide nothing: one call routes them all.
        ranks = num_ranks if capacity else 1
        routings = route_per_rank(logits, parts.gating, capacity, ranks)
        routing = merge(routings)
        rows = grouped_mlp(dispatch(tokens, routing), experts, routing)
        return combine(rows, routing), routings

    return run


def _theirs(block: nn.Module) -> _Layer:
    forward = block.forward

    def run(tokens: Tensor) -> tuple[Tensor, list[Routing]]:
        return forward(tokens[None])[0], []

    return run
