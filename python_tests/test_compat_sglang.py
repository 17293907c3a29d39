"""compat.sglang.fused_experts: SGLang's arguments and its configuration object."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.compat import sglang
from cases import DROPLESS
from checks import same_bits
from compat_cases import EXPERTS, TOKENS, TOP_K, assert_runs, decide, layer


@dataclass
class MoeRunnerConfig:
    """As SGLang's, with its defaults."""

    num_experts: int | None = None
    num_local_experts: int | None = None
    num_fused_shared_experts: int | None = None
    layer_id: int | None = None
    activation: str = "silu"
    is_gated: bool = True
    apply_router_weight_on_input: bool = False
    inplace: bool = True
    no_combine: bool = False
    routed_scaling_factor: float | None = None
    gemm1_alpha: float | None = None
    gemm1_clamp_limit: float | None = None
    swiglu_limit: float | None = None
    gate_up_interleaved: bool = True
    top_k: int | None = None


class StandardTopKOutput(NamedTuple):
    """As SGLang's."""

    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    router_logits: Any = None


def call(x, experts, weights, ids, capacity=None, **config):
    return sglang.fused_experts(
        x,
        experts.gate_up_proj,
        experts.down_proj,
        StandardTopKOutput(weights, ids),
        MoeRunnerConfig(**({"inplace": False} | config)),
        experts.gate_up_bias,
        experts.down_bias,
        capacity=capacity,
    )


@pytest.mark.parametrize("capacity", [None, cm.Capacity(factor=1.0)], ids=["dropless", "bounded"])
@pytest.mark.parametrize(
    ("activation", "layout", "config"),
    [
        ("silu", "concat", {}),
        ("gelu", "concat", {"activation": "gelu"}),
        ("silu_no_mul", "concat", {"is_gated": False}),
        ("swigluoai", "interleaved", {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0}),
        (
            "swigluoai",
            "concat",
            {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0, "gate_up_interleaved": False},
        ),
    ],
)
def test_against_loops(activation, layout, config, capacity):
    x, experts, weights, ids = layer(
        torch.bfloat16, activation=activation, layout=layout, bias=True
    )
    ids[::5, 1] = -1
    out = call(x, experts, weights, ids, capacity, **config)
    assert_runs(out, x, experts, decide(ids, weights, capacity or DROPLESS))


def test_the_scaling_factor_weighs_and_does_not_rank():
    x, experts, weights, ids = layer()
    capacity = cm.Capacity(limit=4)
    decision = decide(ids, weights, capacity)
    decision.weights = decision.weights * 2.5
    out = call(x, experts, weights, ids, capacity, routed_scaling_factor=2.5)
    assert_runs(out, x, experts, decision)


def test_the_scaling_factor_stays_off_the_input():
    x, experts, weights, ids = layer()
    options = {"apply_router_weight_on_input": True}
    plain = call(x, experts, weights, ids, **options)
    scaled = call(x, experts, weights, ids, routed_scaling_factor=2.5, **options)
    assert same_bits(scaled, plain * 2.5)


def test_a_part_of_the_experts_is_bounded_by_the_whole_layers_share():
    x, experts, weights, ids = layer()
    capacity = cm.Capacity(factor=0.75, rounding="floor")
    limit = cm.expert_capacity(TOKENS, 2 * EXPERTS, TOP_K, 0.75, "floor")
    assert limit < cm.expert_capacity(TOKENS, EXPERTS, TOP_K, 0.75, "floor")
    out = call(
        x, experts, weights, ids, capacity, num_experts=2 * EXPERTS, num_local_experts=EXPERTS
    )
    assert_runs(out, x, experts, decide(ids, weights, cm.Capacity(limit=limit)))


def test_in_place_is_sglangs_default():
    x, experts, weights, ids = layer()
    expected = call(x, experts, weights, ids)
    tensors = (x, experts.gate_up_proj, experts.down_proj, (weights, ids), MoeRunnerConfig())
    assert sglang.fused_experts(*tensors) is x
    assert same_bits(x, expected)


def test_a_shared_expert_among_the_routed_ones_is_not_bounded():
    x, experts, weights, ids = layer()
    call(x, experts, weights, ids, num_fused_shared_experts=1)
    with pytest.raises(ValueError, match="num_fused_shared_experts must be None or False, got 1"):
        call(x, experts, weights, ids, cm.Capacity(factor=2.0), num_fused_shared_experts=1)
    with pytest.raises(ValueError, match="topk_output must start with"):
        sglang.fused_experts(x, x, x, (weights,), MoeRunnerConfig())


class Slotted:
    __slots__ = ("activation", "no_combine")

    def __init__(self, activation="silu", no_combine=False):
        self.activation, self.no_combine = activation, no_combine


def call_with(config):
    x, experts, weights, ids = layer()
    return sglang.fused_experts(x, experts.gate_up_proj, experts.down_proj, (weights, ids), config)


def test_a_configuration_with_slots_is_read():
    x, experts, weights, ids = layer(activation="gelu")
    own = experts.gate_up_proj, experts.down_proj
    out = sglang.fused_experts(x, *own, (weights, ids), Slotted("gelu"))
    assert same_bits(out, call(x, experts, weights, ids, activation="gelu"))
    with pytest.raises(ValueError, match=r"moe_runner_config\.no_combine must be None or False"):
        call_with(Slotted(no_combine=True))


def test_a_configuration_without_attributes_has_the_defaults():
    x, experts, weights, ids = layer()
    assert same_bits(call_with(SimpleNamespace()), call(x, experts, weights, ids))


@pytest.mark.parametrize("config", [{"activation": "silu"}, {}, None, "silu", 3], ids=str)
def test_what_is_no_configuration_is_refused(config):
    kind = type(config).__name__
    with pytest.raises(TypeError, match=f"moe_runner_config must be a MoeRunnerConfig.*got {kind}"):
        call_with(config)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"top_k": 8}, "top_k must be topk_ids' 2 columns, got 8"),
        ({"top_k": 1}, "top_k must be topk_ids' 2 columns, got 1"),
        ({"num_local_experts": 64}, "num_local_experts must be w1's 8, got 64"),
        ({"num_experts": 32, "num_local_experts": 4}, "num_local_experts must be w1's 8, got 4"),
        ({"num_experts": 4}, "num_experts must be at least w1's 8, got 4"),
    ],
)
def test_sizes_of_another_layer_are_refused(config, word):
    x, experts, weights, ids = layer()
    with pytest.raises(ValueError, match=rf"moe_runner_config\.{word}"):
        call(x, experts, weights, ids, **config)
    fitting = {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "top_k": TOP_K}
    assert same_bits(call(x, experts, weights, ids, **fitting), call(x, experts, weights, ids))
