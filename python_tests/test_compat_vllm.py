"""compat.fused_experts: vLLM's arguments, against loops over tokens and experts."""

from __future__ import annotations

import enum
import inspect
from types import SimpleNamespace

import pytest
import torch

import capmoe_kernels as cm
import oracle_mlp
from capmoe_kernels.compat import fused_experts
from capmoe_kernels.compat.experts import route_topk
from cases import DROPLESS, normal
from checks import assert_close_to_truth, same_bits
from compat_cases import EXPERTS, TOKENS, TOP_K, assert_runs, decide, layer, local

CAPACITIES = [
    None,
    cm.Capacity(factor=1.0),
    cm.Capacity(limit=3, policy="keep_first"),
    cm.Capacity(factor=0.7, scope="device", experts_per_device=4),
]


def call(x, experts, weights, ids, *args, **options):
    biases = {"w1_bias": experts.gate_up_bias, "w2_bias": experts.down_bias}
    return fused_experts(
        x, experts.gate_up_proj, experts.down_proj, weights, ids, *args, **(biases | options)
    )


@pytest.mark.parametrize("capacity", CAPACITIES, ids=["dropless", "factor", "limit", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_against_loops(poison, dtype, capacity):
    x, experts, weights, ids = layer(dtype, bias=True)
    decision = decide(ids, weights, capacity or DROPLESS)
    assert_runs(call(x, experts, weights, ids, capacity=capacity), x, experts, decision)


def test_the_arguments_are_vllms_in_vllms_order():
    positional = [
        name
        for name, parameter in inspect.signature(fused_experts).parameters.items()
        if parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == [
        "hidden_states",
        "w1",
        "w2",
        "topk_weights",
        "topk_ids",
        "activation",
        "apply_router_weight_on_input",
        "global_num_experts",
        "expert_map",
        "quant_config",
    ]


@pytest.mark.parametrize("sentinel", [-1, EXPERTS, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("capacity", CAPACITIES[:2], ids=["dropless", "factor"])
def test_ids_that_are_no_experts_are_not_routed(poison, sentinel, capacity):
    x, experts, weights, ids = layer()
    ids[::3, 1] = sentinel
    ids[7] = sentinel
    out = call(x, experts, weights, ids, capacity=capacity)
    assert_runs(out, x, experts, decide(ids, weights, capacity or DROPLESS))
    assert out[7].eq(0).all()


def test_scores_rank_and_weights_weigh():
    x, experts, weights, ids = layer()
    scores, capacity = normal((TOKENS, TOP_K), seed=9), cm.Capacity(limit=4)
    by_scores = decide(ids, weights, capacity, scores=scores)
    assert by_scores.kept != decide(ids, weights, capacity).kept
    out = call(x, experts, weights, ids, capacity=capacity, scores=scores)
    assert_runs(out, x, experts, by_scores)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("capacity", CAPACITIES, ids=["dropless", "factor", "limit", "device"])
def test_expert_map_runs_a_ranks_part_of_the_whole_layers_decision(ids_dtype, capacity):
    x, experts, weights, ids = layer(bias=True)
    ids[3] = -1
    decision = decide(ids, weights, capacity or DROPLESS)
    parts = []
    for mine in ([5, 0, 2], [1, 3, 4, 6, 7]):
        expert_map = torch.full((EXPERTS,), -1, dtype=torch.int32)
        expert_map[mine] = torch.arange(len(mine), dtype=torch.int32)
        own = cm.Experts(
            experts.gate_up_proj[mine],
            experts.down_proj[mine],
            experts.gate_up_bias[mine],
            experts.down_bias[mine],
        )
        out = call(
            x,
            own,
            weights,
            ids.to(ids_dtype),
            capacity=capacity,
            expert_map=expert_map,
            global_num_experts=EXPERTS,
        )
        assert_runs(out, x, own, local(decision, expert_map))
        parts.append(out)
    torch.testing.assert_close(sum(parts), call(x, experts, weights, ids, capacity=capacity))


def test_a_rank_runs_no_row_of_what_was_dropped():
    _, _, weights, ids = layer()
    ids[::7, 0] = -1
    whole = cm.select(ids, weights, EXPERTS, cm.Capacity(factor=0.5))
    expert_map = torch.tensor([2, -1, 0, -1, 1, 3, -1, 4])
    part = route_topk(ids, weights, 5, cm.Capacity(factor=0.5), expert_map=expert_map)
    here = expert_map >= 0
    assert part.tokens_per_expert[expert_map[here]].equal(whole.tokens_per_expert[here])


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_on_the_input(poison, dtype, top_k):
    x, experts, weights, ids = layer(dtype)
    weights, ids, capacity = weights[:, :top_k], ids[:, :top_k], cm.Capacity(factor=0.8)
    out = call(x, experts, weights, ids, "silu", True, capacity=capacity)
    decision = decide(ids, weights, capacity)
    truth, plain = torch.zeros(x.shape, dtype=torch.float64), torch.zeros_like(x)
    for t, e in sorted(decision.kept):
        weight = weights[t][ids[t] == e]
        scaled = (x[t] * weight).to(dtype)
        truth[t] += oracle_mlp.expert_mlp(scaled, experts, e)
        plain[t] += oracle_mlp.same_dtype_mlp(scaled[None], experts, e)[0]
    assert_close_to_truth(out, truth, plain)
    assert not torch.allclose(out, call(x, experts, weights, ids, capacity=capacity))


class MoEActivation(enum.Enum):
    """As vLLM's."""

    GELU = "gelu"


GPT_OSS = SimpleNamespace(gemm1_alpha=1.702, gemm1_beta=1.0, gemm1_clamp_limit=7.0)


@pytest.mark.parametrize(
    ("given", "activation", "layout", "config"),
    [
        (MoEActivation.GELU, "gelu", "concat", None),
        ("gelu_pytorch_tanh", "gelu_tanh", "concat", None),
        ("relu2_no_mul", "relu2_no_mul", "concat", None),
        ("swigluoai", "swigluoai", "interleaved", None),
        ("swigluoai_uninterleave", "swigluoai", "concat", GPT_OSS),
    ],
)
def test_activations(given, activation, layout, config):
    x, experts, weights, ids = layer(activation=activation, layout=layout, bias=True)
    out = call(x, experts, weights, ids, given, quant_config=config)
    assert_runs(out, x, experts, decide(ids, weights, DROPLESS))


def test_an_unquantised_config_gives_the_biases():
    x, experts, weights, ids = layer(bias=True)
    config = SimpleNamespace(
        quant_dtype=None,
        is_quantized=False,
        w1_scale=None,
        w1_bias=experts.gate_up_bias,
        w2_bias=experts.down_bias,
    )
    out = call(x, experts, weights, ids, quant_config=config, w1_bias=None, w2_bias=None)
    assert same_bits(out, call(x, experts, weights, ids))
    with pytest.raises(ValueError, match=r"w1_bias must be given once: quant_config\.w1_bias"):
        call(x, experts, weights, ids, quant_config=config)


def test_inplace_and_strides():
    x, experts, weights, ids = layer()
    expected = call(x, experts, weights, ids, capacity=CAPACITIES[1])
    wide = torch.empty(TOKENS, 2 * x.shape[1])[:, ::2].copy_(x)
    pairs = torch.stack([ids, ids], 2).transpose(0, 1)[..., 0].t()
    strided = cm.Experts(
        experts.gate_up_proj.transpose(1, 2).contiguous().transpose(1, 2),
        experts.down_proj.transpose(0, 1).contiguous().transpose(0, 1),
    )
    column_major = weights.t().contiguous().t()
    out = call(wide, strided, column_major, pairs, capacity=CAPACITIES[1])
    torch.testing.assert_close(out, expected)
    assert call(wide, experts, weights, ids, capacity=CAPACITIES[1], inplace=True) is wide
    torch.testing.assert_close(wide, expected)


def test_no_token():
    x, experts, weights, ids = layer()
    assert call(x[:0], experts, weights[:0], ids[:0], capacity=CAPACITIES[1]).shape == (0, 24)


def test_compiles_without_a_break():
    x, experts, weights, ids = layer()
    expert_map = torch.tensor([0, 1, -1, 2, 3, -1, 4, 5], dtype=torch.int32)
    own = cm.Experts(experts.gate_up_proj[:6], experts.down_proj[:6])

    def both(x, weights, ids):
        plain = call(x, experts, weights, ids, capacity=CAPACITIES[1])
        return plain + call(x, own, weights, ids, capacity=CAPACITIES[1], expert_map=expert_map)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (TOKENS, 17):
        some = x[:tokens], weights[:tokens], ids[:tokens]
        assert same_bits(compiled(*some), both(*some))
