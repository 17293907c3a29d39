"""DeepSeek-V3 and its kin (GLM-4-MoE, dots.llm1): sigmoid scores, ranked with a bias.

Groups count as the sum of their two best experts; weights are the scores without the bias.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..gating import Gating
from .blocks import register
from .expert_weights import read_experts
from .parts import Architecture, MoeParts
from .reading import float32_logits, plain_weight, require_setting, setting


def read(block: nn.Module, config: Any) -> MoeParts:
    """Parts of a ``DeepseekV3MoE``; the model's first layers are dense and have none.

    Raises:
        ValueError: ``topk_method`` or ``scoring_func`` is another than Transformers computes.
    """
    router: Any = block.gate
    plain_weight(router, "weight")
    of_router = partial(setting, router, block=block)  # the first of Transformers 5 ask the block
    require_setting("topk_method", getattr(config, "topk_method", "noaux_tc"), ("noaux_tc",))
    require_setting("scoring_func", getattr(config, "scoring_func", "sigmoid"), ("sigmoid",))
    setting(router, "e_score_correction_bias")
    gating = Gating(
        top_k=of_router("top_k"),
        scoring="sigmoid",
        renormalize="topk" if of_router("norm_topk_prob") else "none",
        scaling=of_router("routed_scaling_factor"),
        num_groups=of_router("num_group", "n_group"),
        topk_groups=of_router("topk_group"),
        group_score="top2_sum",
    )
    return MoeParts(
        gating,
        partial(float32_logits, router),
        read_experts(setting(block, "experts")),
        selection_bias=partial(_bias, router),
        shared=setting(block, "shared_experts"),
    )


def _bias(router: nn.Module) -> Tensor:
    bias: Any = router.e_score_correction_bias
    in_float32: Tensor = bias.detach().float()
    return in_float32


register(Architecture("deepseek_v3", "DeepseekV3MoE", read))
register(Architecture("glm4_moe", "Glm4MoeMoE", read))
register(Architecture("dots1", "Dots1MoE", read))
