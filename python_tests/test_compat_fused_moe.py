"""compat.fused_moe: the routing arguments of vLLM, against vLLM's routing written out in loops."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.compat import fused_experts, fused_moe
from cases import make_experts, normal, router_logits
from checks import same_bits

T, E, K, H, F = 30, 8, 3, 16, 12
BIAS = torch.linspace(0.3, -0.3, E)

ROUTINGS = [
    {"renormalize": False},
    {"renormalize": True, "routed_scaling_factor": 2.5},
    {"renormalize": True, "scoring_func": "sigmoid", "e_score_correction_bias": BIAS},
    {
        "renormalize": False,
        "use_grouped_topk": True,
        "num_expert_group": 4,
        "topk_group": 2,
    },
    {
        "renormalize": True,
        "use_grouped_topk": True,
        "num_expert_group": 4,
        "topk_group": 2,
        "scoring_func": "sigmoid",
        "e_score_correction_bias": BIAS,
        "routed_scaling_factor": 1.5,
    },
]
routings = pytest.mark.parametrize("routing", ROUTINGS, ids=range(len(ROUTINGS)))


def vllm_topk(row, routing):
    """(ids, weights) of one token: vllm's grouped_topk and fused_topk, from its source."""
    if routing.get("scoring_func") == "sigmoid":
        scores = [1 / (1 + math.exp(-x)) for x in row]
    else:
        total = math.fsum(math.exp(x) for x in row)
        scores = [math.exp(x) / total for x in row]
    bias = routing.get("e_score_correction_bias")
    ranked = scores if bias is None else [s + b for s, b in zip(scores, bias.tolist(), strict=True)]
    if routing.get("use_grouped_topk"):
        groups, size = routing["num_expert_group"], E // routing["num_expert_group"]
        parts = [sorted(ranked[g * size : (g + 1) * size], reverse=True) for g in range(groups)]
        value = [part[0] if bias is None else part[0] + part[1] for part in parts]
        best = sorted(range(groups), key=lambda g: -value[g])[: routing["topk_group"]]
        ranked = [x if e // size in best else -math.inf for e, x in enumerate(ranked)]
    ids = sorted(range(E), key=lambda e: -ranked[e])[:K]
    weights = [scores[e] for e in ids]
    if routing["renormalize"]:
        weights = [w / math.fsum(weights) for w in weights]
    return ids, [w * routing.get("routed_scaling_factor", 1.0) for w in weights]


def tensors(dtype=torch.float32):
    logits = router_logits(T, E, "distinct", seed=4)
    logits = 8 * (logits - logits.amin(1, keepdim=True)) - 2  # where a sigmoid is steep
    return normal((T, H), dtype, seed=3), make_experts(E, H, F, dtype, bias=True), logits


def call(x, experts, logits, routing, **options):
    biases = {"w1_bias": experts.gate_up_bias, "w2_bias": experts.down_bias}
    weights = (experts.gate_up_proj, experts.down_proj)
    return fused_moe(x, *weights, logits, K, **(biases | routing | options))


@routings
def test_routes_as_vllm_does(routing):
    x, experts, logits = tensors()
    ids, weights = zip(*(vllm_topk(row, routing) for row in logits.tolist()), strict=True)
    expected = fused_experts(
        x,
        experts.gate_up_proj,
        experts.down_proj,
        torch.tensor(weights),
        torch.tensor(ids),
        w1_bias=experts.gate_up_bias,
        w2_bias=experts.down_bias,
    )
    torch.testing.assert_close(call(x, experts, logits, routing), expected, rtol=1e-5, atol=1e-5)


@routings
@pytest.mark.parametrize(
    "capacity",
    [
        cm.Capacity(factor=1.0),
        cm.Capacity(factor=1.0, expand="rank", extra=2),
        cm.Capacity(factor=1.0, expand="local", local_experts=(2, 5)),
        cm.Capacity(factor=0.5, reroute_rounds=2),
    ],
    ids=["drop", "rank", "local", "reroute"],
)
def test_ranks_add_up_to_the_whole_layer_and_that_is_moe(capacity, routing):
    x, experts, logits = tensors()
    whole = call(x, experts, logits, routing, capacity=capacity)
    gating = cm.Gating(
        K,
        routing.get("scoring_func", "softmax"),
        "topk" if routing["renormalize"] else "none",
        routing.get("routed_scaling_factor", 1.0),
        routing.get("num_expert_group", 1),
        routing.get("topk_group", 1),
        "top2_sum" if "e_score_correction_bias" in routing else "max",
    )
    bias = routing.get("e_score_correction_bias")
    assert same_bits(whole, cm.moe(x, logits, experts, gating, capacity, selection_bias=bias))
    parts = []
    for mine in ([1, 6, 7], [0, 2, 3, 4, 5]):
        expert_map = torch.full((E,), -1, dtype=torch.int32)
        expert_map[mine] = torch.arange(len(mine), dtype=torch.int32)
        fields = (experts.gate_up_proj, experts.down_proj, experts.gate_up_bias, experts.down_bias)
        own = cm.Experts(*(tensor[mine] for tensor in fields))
        options = {"capacity": capacity, "expert_map": expert_map, "global_num_experts": E}
        parts.append(call(x, own, logits, routing, **options))
    torch.testing.assert_close(sum(parts), whole)


def test_weights_on_the_input_and_inplace():
    x, experts, logits = tensors(torch.bfloat16)
    routing, options = ROUTINGS[0], {"capacity": cm.Capacity(limit=6)}
    chosen = cm.route(logits, cm.Gating(K), options["capacity"])
    expected = fused_experts(
        x,
        experts.gate_up_proj,
        experts.down_proj,
        chosen.weights,
        torch.where(chosen.rows >= 0, chosen.expert_ids, -1),
        apply_router_weight_on_input=True,
        w1_bias=experts.gate_up_bias,
        w2_bias=experts.down_bias,
    )
    options["apply_router_weight_on_input"] = True
    assert same_bits(call(x, experts, logits, routing, **options), expected)
    assert call(x, experts, logits, routing, inplace=True, **options) is x
    assert same_bits(x, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_weighted_input_is_rounded_once(dtype):
    x, experts, _ = tensors(dtype)
    weights = torch.linspace(0.1, 0.9, len(x))[:, None]
    ids = torch.arange(len(x))[:, None] % E
    options = {"w1_bias": experts.gate_up_bias, "w2_bias": experts.down_bias}
    own = experts.gate_up_proj, experts.down_proj
    out = fused_experts(x, *own, weights, ids, apply_router_weight_on_input=True, **options)
    once, twice = (x.float() * weights).to(dtype), x * weights.to(dtype)
    ones = torch.ones_like(weights)
    assert same_bits(out, fused_experts(once, *own, ones, ids, **options))
    assert not same_bits(out, fused_experts(twice, *own, ones, ids, **options))
