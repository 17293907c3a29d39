"""The block that most families share: softmax over all experts, top-k, SwiGLU experts."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..gating import Gating, Renormalize
from .expert_weights import read_experts
from .parts import MoeParts
from .reading import linear_logits, plain_weight, setting, with_logits


def read_softmax_block(block: nn.Module, renormalize: Renormalize | None = None) -> MoeParts:
    """Parts of a block with a ``gate`` and ``experts``, of Transformers 5 or 4.

    Args:
        block: whose router chooses the ``top_k`` best by softmax.
        renormalize: None: as the module's ``norm_topk_prob`` says.

    Raises:
        ValueError: a setting or a weight is not understood.
    """
    gate: Any = block.gate
    experts: Any = block.experts
    in_modules = isinstance(experts, nn.ModuleList)
    # Transformers 5 has a router module, 4 a Linear and the settings on the block.
    settings = block if in_modules else gate
    if not in_modules:
        plain_weight(gate, "weight")
    if renormalize is None:
        # The weight of a pair stays what it is without capacity: hence not "kept".
        renormalize = "topk" if setting(settings, "norm_topk_prob") else "none"
    return MoeParts(
        Gating(top_k=setting(settings, "top_k"), renormalize=renormalize),
        gate if in_modules else partial(linear_logits, gate),
        read_experts(experts),
        wrap=with_logits if in_modules else None,
    )
