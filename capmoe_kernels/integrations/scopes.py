"""What holds for the calls within a ``with``: other capacities, given padding, records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from .._checks import require_tensor
from .blocks import find_moe_blocks
from .capacities import Capacities, per_block
from .padding import follow_masks
from .records import LayerRecord
from .refusals import check_block
from .sources import unread
from .taken_over import Watched
from .takeover import Takeover, current_forward, require_takeover, takeovers_of

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def capacity_scope(
    model: Model, capacity: Capacities = None, *, decode: Capacities = None
) -> Iterator[Model]:
    """Bound a model that is taken over by other capacities, or by none, for a while.

    As with ``apply``, ``capacity`` bounds prefill, and ``decode`` the steps of decoding; both
    default to dropless.

        with capacity_scope(model, None):
            model.generate(input_ids)  # nothing is dropped

    Args:
        model: one that ``apply`` has taken over.
        capacity, decode: see ``apply``.

    Raises:
        RuntimeError: ``model`` is not taken over.
        TypeError, ValueError: see ``apply``.
    """
    takeover = require_takeover(model)
    layers = takeover.layers
    ranks = layers[0].how.num_ranks
    bounds = per_block("capacity", capacity, len(layers), ranks)
    decode_bounds = per_block("decode", decode, len(layers), ranks)
    for layer, *pair in zip(layers, bounds, decode_bounds, strict=True):
        check_block(layer.block, None, pair, ranks)
    before = [layer.capacity for layer in layers], [layer.decode for layer in layers]
    takeover.bound(bounds, decode_bounds)
    try:
        yield model
    finally:
        takeover.bound(*before)


@contextmanager
def real_tokens(model: nn.Module, token_mask: Tensor) -> Iterator[None]:
    """Say which tokens are real where ``attention_mask`` can't: for calls of that very shape.

    Args:
        model: one that ``apply`` or :func:`watch` has taken over.
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
    """Record every call of the blocks that ``apply`` has taken over, oldest first.

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
        RuntimeError: the model is taken over: ``undo`` that first.
    """
    if takeovers_of(model):
        raise RuntimeError("watch sees the model's own blocks: undo(model) first")
    blocks = find_moe_blocks(model)
    masks = follow_masks(model, [block.name for block in blocks], router_logits=True)
    records: list[LayerRecord] = []
    layers = [
        Watched(layer, unread(block), current_forward(block.module), mask, records)
        for layer, (block, mask) in enumerate(zip(blocks, masks.of_block, strict=True))
    ]
    takeover = Takeover(layers, masks)
    try:
        yield records
    finally:
        takeover.undo()
