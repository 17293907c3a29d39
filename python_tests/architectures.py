"""Small random models of every known architecture, and what their blocks compute, from oracles.

Written from the models' source, for Transformers 5 and 4 alike; nothing is read through the
package.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

import oracle
import oracle_mlp
from capmoe_kernels import Capacity, Experts, Gating

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


def tokens_of(dtype, num_tokens=48, seed=0):
    """[2, T / 2, H], large enough for GPT-OSS's clamp to bite."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(2, num_tokens // 2, HIDDEN, generator=generator)).to(dtype)


def first(out):
    """A block's hidden states, whether it returns a tuple or not."""
    return out[0] if isinstance(out, tuple) else out


def logits_of(case, block, tokens):
    router = block.router if hasattr(block, "router") else block.gate
    if case.float32_router:
        return F.linear(tokens.float(), router.weight.float())
    return F.linear(tokens, router.weight, getattr(router, "bias", None))


def experts_of(case, block):
    """Copies of the weights, as [E, 2F, H] and [E, H, F]."""
    held = block.experts
    if isinstance(held, torch.nn.ModuleList):
        gate, up, down = ("w1", "w3", "w2") if hasattr(held[0], "w1") else _PROJECTIONS
        weights = [
            torch.stack([torch.cat([getattr(e, n).weight for n in names]) for e in held])
            for names in ((gate, up), (down,))
        ]
        return Experts(*weights, activation=case.activation)
    if case.layout == "interleaved":
        weights = [held.gate_up_proj.mT, held.down_proj.mT]
        biases = [held.gate_up_proj_bias.clone(), held.down_proj_bias.clone()]
        return Experts(*(w.clone() for w in weights), *biases, case.activation, case.layout)
    weights = [held.gate_up_proj.clone(), held.down_proj.clone()]
    return Experts(*weights, activation=case.activation)


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def decide(case, block, tokens, capacity):
    """The oracle's decision about tokens [T, H]."""
    bias = block.gate.e_score_correction_bias.float().tolist() if case.biased else None
    candidates = oracle.gate(
        logits_of(case, block, tokens).float().tolist(),
        case.gating,
        bias,
        capacity.drop_score,
        capacity.expand,
        capacity.extra,
        range(*(capacity.local_experts or (0, 0))),
    )
    return oracle.select(
        candidates.expert_ids,
        candidates.weights,
        candidates.scores,
        EXPERTS,
        capacity,
        top_k=case.gating.top_k,
    )


def truth_and_same_dtype(case, block, tokens, capacity=None):
    """What the block must give for tokens [T, H] in float64, and in the tokens' dtype by loops."""
    decision = decide(case, block, tokens, capacity or Capacity())
    experts = experts_of(case, block)
    truth = torch.zeros(tokens.shape, dtype=torch.float64)
    same = torch.zeros_like(tokens)
    for t, line in enumerate(decision.expert_ids):
        for column, e in enumerate(line):
            if decision.rows[t][column] < 0:
                continue
            weight = decision.weights[t][column]
            truth[t] += weight * oracle_mlp.expert_mlp(tokens[t], experts, e)
            same[t] += oracle_mlp.same_dtype_mlp(tokens[t : t + 1], experts, e)[0] * weight
    if case.shared is not None:
        truth += _shared(case, copy.deepcopy(block).double(), tokens.double())
        same += _shared(case, block, tokens)
    return truth, same


def _shared(case, block, tokens):
    out = getattr(block, case.shared)(tokens)
    if case.shared == "shared_expert":
        out = torch.sigmoid(block.shared_expert_gate(tokens)) * out
    return out


def without_ties(case, block, tokens):
    """[T] bool: tokens whose choice of experts no rounding decides."""
    logits = logits_of(case, block, tokens).double()
    values = logits.sigmoid() if case.biased else logits
    if case.biased:
        values = values + block.gate.e_score_correction_bias.double()
    keep = _apart(values, case.gating.top_k)
    groups = case.gating.num_groups
    if groups > 1:
        grouped = values.view(-1, groups, EXPERTS // groups)
        top2 = case.gating.group_score == "top2_sum"
        worth = grouped.topk(2).values.sum(2) if top2 else grouped.amax(2)
        best = worth.topk(case.gating.topk_groups).indices
        usable = torch.zeros_like(worth).scatter(1, best, 1).repeat_interleave(2, 1).bool()
        inside = values.masked_fill(~usable, -torch.inf)
        keep = _apart(worth, case.gating.topk_groups) & _apart(inside, case.gating.top_k)
    return keep


def _apart(values, k):
    """Whether the k-th largest of each row is clear of the next."""
    ordered = values.sort(descending=True).values
    return ordered[:, k - 1] - ordered[:, k] > 1e-6
