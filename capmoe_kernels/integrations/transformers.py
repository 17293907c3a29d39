"""Let a Hugging Face Transformers model run its MoE blocks on these kernels, with a capacity.

    apply(model, capacity=Capacity(factor=1.5))
    model.generate(input_ids)        # prefill is bounded, decoding is not
    undo(model)

Weights are shared, not copied, and ``undo`` gives the model back exactly as it was. Which models,
on Transformers 5 (tested: 5.23) and 4 (4.57.6), and whose weights are copied: docs/architectures.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from .._checks import require_tensor
from ..capacity import Capacity
from ..experts import Experts
from ..gating import Gating
from . import architectures  # noqa: F401  registers what is known
from .blocks import MoeBlock, OwnRouter, check_supported, find_moe_blocks, supported
from .capacities import Capacities, per_block
from .padding import TokenMask, follow_masks
from .records import LayerRecord
from .refusals import check_block, check_model
from .taken_over import TakenOver, TakenOverBlock, TakenOverExperts, Watched
from .takeover import Takeover, current_forward, require_takeover, takeover_of

__all__ = [
    "Capacities",
    "LayerRecord",
    "apply",
    "capacity_scope",
    "check_supported",
    "find_moe_blocks",
    "real_tokens",
    "recording",
    "supported",
    "undo",
    "watch",
]

Model = TypeVar("Model", bound=nn.Module)


def apply(
    model: Model,
    gating: Gating | None = None,
    capacity: Capacities = None,
    *,
    decode: Capacities = None,
    num_ranks: int = 1,
    pack: bool = False,
) -> Model:
    """Take over every MoE block of ``model``, in place, until :func:`undo`.

    Prefill is bounded by ``capacity``. A call with one token per sequence is a step of decoding and
    is bounded by ``decode``, which is dropless by default: the few tokens of a step make no long
    queue, and each one dropped is a token that the user reads. Padding that a [B, S]
    ``attention_mask`` names neither competes nor counts, and gets 0. A model that is taken over
    already is taken over anew.

    Args:
        model: a Transformers model in inference, or one that PEFT or Accelerate has wrapped.
        gating: how every block's router chooses; None: as the model's configuration says.
        capacity: of every block, or one for each: see :data:`Capacities`. A single one's ``seed``
            is moved on from block to block.
        decode: the same for calls of one token per sequence.
        num_ranks: D > 1 bounds the load as D expert-parallel ranks would, each for its own tokens:
            see :func:`~capmoe_kernels.integrations.ranks.route_per_rank`.
        pack: run on :meth:`Experts.pack` of the weights: faster on a CPU, where it is a second copy
            of them that later changes of the model's weights don't reach.

    Returns:
        ``model``.

    Raises:
        TypeError: ``capacity`` or ``decode`` is none of :data:`Capacities`.
        ValueError: a block is not understood, or does not fit ``gating`` or a capacity; there is no
            block; weights are not in memory; D does not divide E; or the configuration asks for
            router logits, which blocks taken over do not give (so do not pass
            ``output_router_logits=True`` to a call either).
    """
    before = takeover_of(model)
    blocks = find_moe_blocks(model)
    check_model(model, blocks)
    bounds = per_block("capacity", capacity, len(blocks), num_ranks)
    decode_bounds = per_block("decode", decode, len(blocks), num_ranks)
    for block, *pair in zip(blocks, bounds, decode_bounds, strict=True):
        check_block(block, gating, pair, num_ranks)
    experts = [_prepared(block.parts.experts, pack) for block in blocks]
    if before is not None:
        before.undo()
    masks = follow_masks(model, [block.name for block in blocks])
    layers = [
        _stand_in(layer, block, gating, experts[layer], num_ranks, masks.of_block[layer])
        for layer, block in enumerate(blocks)
    ]
    takeover = Takeover(model, layers, masks)
    _bound(takeover, bounds, decode_bounds)
    return model


def undo(model: Model) -> Model:
    """Give every block its own forward back. A model that is not taken over stays as it is.

    Raises:
        RuntimeError: a block's forward was replaced again since :func:`apply`.
    """
    takeover = takeover_of(model)
    if takeover is not None:
        takeover.undo()
    return model


@contextmanager
def capacity_scope(
    model: Model, capacity: Capacities = None, *, decode: Capacities = None
) -> Iterator[Model]:
    """Bound a model that is taken over by other capacities, or by none, for a while.

    As with :func:`apply`, ``capacity`` bounds prefill, and ``decode`` the calls of one token per
    sequence; both default to dropless.

        with capacity_scope(model, None):
            model.generate(input_ids)  # nothing is dropped

    Args:
        model: one that :func:`apply` has taken over.
        capacity, decode: see :func:`apply`.

    Raises:
        RuntimeError: ``model`` is not taken over.
        TypeError, ValueError: see :func:`apply`.
    """
    takeover = require_takeover(model)
    layers = takeover.layers
    ranks = layers[0].num_ranks
    bounds = per_block("capacity", capacity, len(layers), ranks)
    decode_bounds = per_block("decode", decode, len(layers), ranks)
    for layer, *pair in zip(layers, bounds, decode_bounds, strict=True):
        check_block(layer.block, None, pair, ranks)
    before = [layer.capacity for layer in layers], [layer.decode for layer in layers]
    _bound(takeover, bounds, decode_bounds)
    try:
        yield model
    finally:
        _bound(takeover, *before)


@contextmanager
def real_tokens(model: nn.Module, token_mask: Tensor) -> Iterator[None]:
    """Say which tokens are real where ``attention_mask`` can't: for calls of that very shape.

    Args:
        model: one that :func:`apply` or :func:`watch` has taken over.
        token_mask: [B, S] bool, False for padding; it goes before ``attention_mask``.

    Raises:
        RuntimeError: ``model`` is not taken over.
        TypeError, ValueError: ``token_mask`` is not [B, S] bool.
    """
    masks = require_takeover(model).token_masks
    require_tensor("token_mask", token_mask, [None, None], [torch.bool], meaning="B, S")
    before = [mask.given for mask in masks]
    for mask in masks:
        mask.given = token_mask
    try:
        yield
    finally:
        for mask, old in zip(masks, before, strict=True):
            mask.given = old


@contextmanager
def recording(model: nn.Module) -> Iterator[list[LayerRecord]]:
    """Record every call of the blocks that :func:`apply` has taken over, oldest first.

    The list is yours to read and to clear. Recording takes the clock around each block, and so
    waits for the device; don't compile a model that is being recorded.

    Raises:
        RuntimeError: ``model`` is not taken over.
    """
    layers = require_takeover(model).layers
    records: list[LayerRecord] = []
    before = [layer.records for layer in layers]
    for layer in layers:
        layer.records = records
    try:
        yield records
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.records = old


@contextmanager
def watch(model: nn.Module) -> Iterator[list[LayerRecord]]:
    """Record every MoE block as Transformers runs it: the time it takes, on the real tokens.

    Raises:
        ValueError: there is no MoE block that is understood.
        RuntimeError: the model is taken over: :func:`undo` that first.
    """
    if takeover_of(model) is not None:
        raise RuntimeError("watch sees the model's own blocks: undo(model) first")
    blocks = find_moe_blocks(model)
    masks = follow_masks(model, [block.name for block in blocks])
    records: list[LayerRecord] = []
    takeover = Takeover(
        model,
        [
            Watched(layer, block, current_forward(block.module), masks.of_block[layer], records)
            for layer, block in enumerate(blocks)
        ],
        masks,
    )
    try:
        yield records
    finally:
        takeover.undo()


def _prepared(experts: Experts, pack: bool) -> Experts:
    return experts.pack() if pack else experts.concat()


def _stand_in(
    layer: int,
    block: MoeBlock,
    gating: Gating | None,
    experts: Experts,
    num_ranks: int,
    token_mask: TokenMask,
) -> TakenOver:
    if isinstance(block.parts, OwnRouter):
        return TakenOverExperts(layer, block, experts, num_ranks, token_mask)
    parts = block.parts if gating is None else replace(block.parts, gating=gating)
    return TakenOverBlock(layer, block, parts, experts, num_ranks, token_mask)


def _bound(
    takeover: Takeover,
    capacities: Sequence[Capacity | None],
    decode: Sequence[Capacity | None],
) -> None:
    for layer, *pair in zip(takeover.layers, capacities, decode, strict=True):
        layer.capacity, layer.decode = pair
