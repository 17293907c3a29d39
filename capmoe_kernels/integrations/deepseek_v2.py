"""DeepSeek-V2: softmax in float32, groups by their best expert, a scaling factor, shared experts.

Transformers ignores ``norm_topk_prob`` there, and so do we.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..gating import Gating
from .blocks import register
from .expert_weights import read_experts
from .parts import Architecture, MoeParts
from .reading import float32_logits, plain_weight, require_setting, setting


def read(block: nn.Module, config: Any) -> MoeParts:
    """Parts of a ``DeepseekV2Moe`` (Transformers 5) or ``DeepseekV2MoE`` (4).

    Raises:
        ValueError: ``topk_method`` or ``scoring_func`` is another than Transformers computes.
    """
    router: Any = block.gate
    plain_weight(router, "weight")
    of_router = partial(setting, router, block=block)  # the first of Transformers 5 ask the block
    method = of_router("topk_method")
    require_setting("topk_method", method, ("greedy", "group_limited_greedy"))
    require_setting("scoring_func", getattr(config, "scoring_func", "softmax"), ("softmax",))
    grouped = method == "group_limited_greedy"
    gating = Gating(
        top_k=of_router("top_k"),
        scaling=of_router("routed_scaling_factor"),
        num_groups=of_router("num_group") if grouped else 1,
        topk_groups=of_router("topk_group") if grouped else 1,
        group_score="max",
    )
    return MoeParts(
        gating,
        partial(float32_logits, router),
        read_experts(setting(block, "experts")),
        shared=setting(block, "shared_experts"),
    )


register(Architecture("deepseek_v2", ("DeepseekV2Moe", "DeepseekV2MoE"), read))
