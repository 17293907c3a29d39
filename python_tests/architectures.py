"""Small random models of every known architecture, on Transformers 5 and 4 alike.

What each does with its settings is written down by hand, from the models' source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from capmoe_kernels import Gating

HIDDEN = 32
EXPERTS = 8

_SIZES = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LATENT = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}


@dataclass(frozen=True)
class Case:
    """One architecture with one choice of settings.

    Attributes:
        gating: what the model does with them, written down by hand.
        blocks: how many of its two layers have experts.
        biased: its router ranks by scores with a bias.
    """

    model_type: str
    settings: dict[str, Any]
    gating: Gating
    blocks: int = 2
    float32_router: bool = False
    biased: bool = False
    activation: str = "silu"
    layout: str = "concat"
    shared: str | None = None
    name: str = field(default="", compare=False)

    def __str__(self):
        return f"{self.model_type}{self.name}"


def _softmax(model_type, experts, normalised, name="", **more):
    """OLMoE and its like; ``normalised`` None: the model always does."""
    settings = {experts: EXPERTS} | more.pop("settings", {})
    if normalised is not None:
        settings["norm_topk_prob"] = normalised
    renormalize = "none" if normalised is False else "topk"
    return Case(model_type, settings, Gating(2, renormalize=renormalize), name=name, **more)


def _deepseek(model_type, gating, name="", **settings):
    biased = gating.scoring == "sigmoid"
    return Case(
        model_type,
        _LATENT | {"routed_scaling_factor": gating.scaling} | settings,
        gating,
        blocks=1,
        float32_router=True,
        biased=biased,
        shared="shared_experts",
        name=name,
    )


def _sigmoid(renormalize, scaling, groups, topk_groups):
    return Gating(3, "sigmoid", renormalize, scaling, groups, topk_groups, "top2_sum")


_IN_GROUPS = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
CASES = [
    _softmax("olmoe", "num_experts", False),
    _softmax("olmoe", "num_experts", True, "-norm"),
    _softmax("flex_olmo", "num_experts", True),
    _softmax("mixtral", "num_local_experts", None),
    _softmax(
        "mixtral",
        "num_local_experts",
        None,
        "-gelu",
        settings={"hidden_act": "gelu"},
        activation="gelu",
    ),
    _softmax(
        "minimax",
        "num_local_experts",
        None,
        settings={"layer_types": ["full_attention", "linear_attention"], "block_size": 8},
    ),
    _softmax("qwen2_moe", "num_experts", False, shared="shared_expert"),
    _softmax("qwen2_moe", "num_experts", True, "-norm", shared="shared_expert"),
    _softmax("qwen3_moe", "num_experts", False),
    _softmax(
        "qwen3_moe", "num_experts", True, "-norm", blocks=1, settings={"mlp_only_layers": [0]}
    ),
    _softmax(
        "qwen3_next",
        "num_experts",
        True,
        shared="shared_expert",
        settings={"layer_types": ["full_attention", "full_attention"]},
    ),
    _deepseek("deepseek_v2", Gating(2, scaling=1.0), topk_method="greedy"),
    _deepseek(
        "deepseek_v2",
        Gating(3, scaling=16.0, num_groups=4, topk_groups=2),
        "-groups",
        topk_method="group_limited_greedy",
        **_IN_GROUPS,
    ),
    _deepseek("deepseek_v3", _sigmoid("topk", 2.5, 4, 2), norm_topk_prob=True, **_IN_GROUPS),
    _deepseek(
        "deepseek_v3",
        _sigmoid("none", 1.5, 1, 1),
        "-plain",
        norm_topk_prob=False,
        **_IN_GROUPS | {"n_group": 1, "topk_group": 1},
    ),
    _deepseek("glm4_moe", _sigmoid("topk", 1.5, 4, 2), norm_topk_prob=True, **_IN_GROUPS),
    _deepseek("dots1", _sigmoid("topk", 2.0, 4, 2), norm_topk_prob=True, **_IN_GROUPS),
    Case(
        "gpt_oss",
        {"num_local_experts": EXPERTS, "num_experts_per_tok": 3},
        Gating(3, renormalize="topk"),
        activation="swigluoai",
        layout="interleaved",
    ),
]


def build(case, dtype=torch.float32, seed=0, **settings):
    """The model, every tensor of its blocks random; rank biases positive, as 4's groups need."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(case.model_type, **_SIZES | case.settings | settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for block in blocks_of(model):
            for tensor in block.parameters():
                tensor.normal_(std=0.3)
            if case.biased:
                block.gate.e_score_correction_bias.uniform_(0.0, 0.3)
    return model.to(dtype)


def blocks_of(model):
    """The modules that hold a router and experts."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "experts") and (hasattr(module, "gate") or hasattr(module, "router"))
    ]
