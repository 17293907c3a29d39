"""OLMoE: softmax over all experts, top-k, SwiGLU experts, no shared expert."""

from __future__ import annotations

from typing import Any, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ..experts import Activation, Experts
from ..gating import Gating
from .blocks import Architecture, MoeParts, register


def read(block: nn.Module, config: Any) -> MoeParts:
    """Parts of an ``OlmoeSparseMoeBlock``."""
    if config.hidden_act not in get_args(Activation):
        raise ValueError(f"capmoe_kernels has no gated activation {config.hidden_act!r}")
    router: Any = block.gate
    experts: Any = block.experts

    def router_logits(tokens: Tensor) -> Tensor:
        return F.linear(tokens, router.weight)

    return MoeParts(
        Gating(
            top_k=config.num_experts_per_tok,
            # The weight of a pair stays what it is without capacity: hence not "kept".
            renormalize="topk" if config.norm_topk_prob else "none",
        ),
        router_logits,
        Experts(experts.gate_up_proj, experts.down_proj, activation=config.hidden_act),
    )


register(Architecture("olmoe", "OlmoeSparseMoeBlock", read))
