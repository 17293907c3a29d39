"""Let a Hugging Face Transformers model run its MoE blocks on these kernels, with a capacity.

    apply(model, capacity=Capacity(factor=1.5))
    model.generate(input_ids)        # prefill is bounded, decoding is not
    undo(model)

Weights are shared, not copied, and ``undo`` gives the model back exactly as it was. Which models of
Transformers 5 (tested: 5.23) and 4 (4.57.6), and whose weights are copied, is in
docs/architectures.md; docs/transformers.md says what works under what.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from .._checks import require_int
from ..gating import Gating
from . import architectures  # noqa: F401  registers what is known
from .blocks import OwnRouter, check_supported, find_moe_blocks, supported
from .bypassed import check_calls
from .capacities import Capacities, per_block
from .experts_implementation import register_experts_implementation
from .padding import TokenMask, follow_masks
from .records import LayerRecord
from .refusals import check_adapters, check_block, check_gating, check_model
from .scopes import capacity_scope, real_tokens, recording, watch
from .sources import Reading, prepare
from .taken_over import How, TakenOver, TakenOverBlock, TakenOverExperts
from .takeover import Takeover, takeovers_of

__all__ = [
    "Capacities",
    "LayerRecord",
    "apply",
    "capacity_scope",
    "check_supported",
    "find_moe_blocks",
    "real_tokens",
    "recording",
    "register_experts_implementation",
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
    decode_tokens: int = 1,
    num_ranks: int = 1,
    pack: bool = False,
) -> Model:
    """Take over every MoE block of ``model``, in place, until :func:`undo`.

    Prefill is bounded by ``capacity``. A call with one token per sequence is a step of decoding and
    is bounded by ``decode``, which is dropless by default: the few tokens of a step make no long
    queue, and each one dropped is a token that the user reads. Padding that ``attention_mask``
    names neither competes nor counts, and gets 0 from a block (of a model found by shape: from its
    experts). A model that is taken over already is taken over anew. Weights that change later are
    followed.

    Args:
        model: a Transformers model in inference, or one that PEFT or Accelerate has wrapped.
        gating: how every block's router chooses; None: as the model's configuration says.
        capacity: of every block, or one for each: see :data:`Capacities`. A single one's ``seed``
            is moved on from block to block.
        decode: the same for steps of decoding.
        decode_tokens: a call with at most this many tokens per sequence is a step of decoding; more
            than 1 for speculative decoding, which has so many checked at once.
        num_ranks: D > 1 bounds the load as D expert-parallel ranks would, each for its own tokens:
            see :func:`~capmoe_kernels.integrations.ranks.route_per_rank`.
        pack: run on :meth:`Experts.pack` of the weights: faster on a CPU, where it is a second copy
            of them, which is made anew where the model's weights have changed (a write to ``.data``
            is not seen: apply again).

    Returns:
        ``model``.

    Raises:
        TypeError: ``gating`` is no Gating, ``capacity`` or ``decode`` none of :data:`Capacities`,
            or ``decode_tokens`` no int.
        ValueError: a block is not understood, or does not fit ``gating`` or a capacity; there is no
            block; weights are not in memory, or on several devices; an adapter of PEFT or a forward
            hook is on experts or a router, or somebody has replaced a forward; D does not divide E;
            or the configuration asks for router logits, which blocks taken over do not give.
    """
    require_int("decode_tokens", decode_tokens, minimum=1)
    check_gating(gating)
    check_adapters(model)
    blocks = find_moe_blocks(model)
    check_model(model, blocks)
    check_calls(blocks)
    bounds = per_block("capacity", capacity, len(blocks), num_ranks)
    decode_bounds = per_block("decode", decode, len(blocks), num_ranks)
    for block, *pair in zip(blocks, bounds, decode_bounds, strict=True):
        check_block(block, gating, pair, num_ranks)
    readings = [prepare(block, pack) for block in blocks]
    undo(model)
    masks = follow_masks(model, [block.name for block in blocks], decode_tokens=decode_tokens)
    how = How(getattr(model, "config", None), gating, num_ranks, pack)
    layers = [
        _stand_in(layer, reading, how, masks.of_block[layer])
        for layer, reading in enumerate(readings)
    ]
    Takeover(layers, masks).bound(bounds, decode_bounds)
    return model


def undo(model: Model) -> Model:
    """Give every block its own forward back. A model that is not taken over stays as it is.

    Raises:
        RuntimeError: a block's forward was replaced again since :func:`apply`.
    """
    takeovers = takeovers_of(model)
    for takeover in takeovers:
        takeover.check_undo()
    for takeover in takeovers:
        takeover.undo()
    return model


def _stand_in(layer: int, reading: Reading, how: How, token_mask: TokenMask) -> TakenOver:
    own_router = isinstance(reading.block.parts, OwnRouter)
    stands_in = TakenOverExperts if own_router else TakenOverBlock
    return stands_in(layer, reading, how, token_mask)
