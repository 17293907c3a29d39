"""What compat's adapters of vLLM and SGLang refuse: by name, before any work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from capmoe_kernels.compat import fused_experts, fused_moe, sglang
from cases import router_logits
from compat_cases import EXPERTS, TOKENS, layer


def refuse(error, match, **options):
    x, experts, weights, ids = layer()
    before = x.clone()
    arguments = {
        "hidden_states": x,
        "w1": experts.gate_up_proj,
        "w2": experts.down_proj,
        "topk_weights": weights,
        "topk_ids": ids,
    }
    with pytest.raises(error, match=match):
        fused_experts(**(arguments | {"inplace": True} | options))
    assert x.equal(before)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_fp8_w8a8", True),
        ("per_channel_quant", True),
        ("w1_scale", torch.ones(1)),
        ("a2_scale", torch.ones(1)),
        ("w2_zp", torch.ones(1)),
        ("block_shape", [128, 128]),
        ("ocp_mx_scheme", "w_mxfp4"),
    ],
)
def test_quantisation_is_refused_by_name(option, value):
    refuse(
        ValueError, f"^{option} must be None or False, got .*: the experts are", **{option: value}
    )
    x, experts, weights, ids = layer()
    nothing = {option: None if option != "use_fp8_w8a8" else False}
    fused_experts(x, experts.gate_up_proj, experts.down_proj, weights, ids, **nothing)


@pytest.mark.parametrize("name", ["quant_dtype", "w1_scale", "block_shape", "a1_gscale"])
def test_a_quantised_config_is_refused_by_name(name):
    config = SimpleNamespace(**{name: "fp8"})
    refuse(ValueError, rf"^quant_config\.{name} must be None or False", quant_config=config)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (TypeError, r"fused_experts\(\) got an unexpected keyword argument 'w3'", {"w3": None}),
        (TypeError, "activation must be a name .* had inplace in its place", {"activation": False}),
        (ValueError, "activation must be one of silu, .* got 'situ'", {"activation": "situ"}),
        (
            ValueError,
            "gemm1_alpha, gemm1_beta and gemm1_clamp_limit must be None, None, None for",
            {"quant_config": SimpleNamespace(gemm1_clamp_limit=10.0)},
        ),
        (
            ValueError,
            "must be 1.702, 1.0, 7.0 for activation 'swigluoai_uninterleave', got None",
            {"activation": "swigluoai_uninterleave"},
        ),
        (TypeError, "^w2 must be float32, bfloat16, float16", {"w2": torch.ones(8, 24, 20).byte()}),
        (
            ValueError,
            r"^w1 must have shape \[8, 40, 24\] \(E, 2F, H\)",
            {"w1": torch.ones(8, 20, 24)},
        ),
        (TypeError, "^w1 must be float32, got bfloat16", {"w1": torch.ones(8, 40, 24).bfloat16()}),
        (ValueError, r"^w2_bias must have shape \[8, 24\]", {"w2_bias": torch.ones(24)}),
        (TypeError, "^hidden_states must be float32", {"hidden_states": torch.ones(40, 24).half()}),
        (ValueError, "^hidden_states must have shape", {"hidden_states": torch.ones(39, 24)}),
        (TypeError, "^topk_weights must be float32", {"topk_weights": torch.ones(40, 2).double()}),
        (TypeError, "^topk_ids must be int32, int64", {"topk_ids": torch.ones(40, 2)}),
        (ValueError, "^global_num_experts must be -1 or 8", {"global_num_experts": 16}),
        (TypeError, "^expert_map must be a tensor", {"expert_map": [0, 1]}),
        (TypeError, "^expert_map must be int32, int64", {"expert_map": torch.ones(16)}),
        (ValueError, "expert_map must hold -1 or a local", {"expert_map": torch.arange(16)}),
        (
            ValueError,
            "expert_map must send no two experts",
            {"expert_map": torch.tensor([0, 1, 1, -1])},
        ),
        (RuntimeError, "hidden_states requires grad", {"hidden_states": "grad"}),
    ],
)
def test_border_of_fused_experts(error, match, options):
    if options.get("hidden_states") == "grad":
        options = {"hidden_states": torch.ones(40, 24, requires_grad=True)}
    refuse(error, match, **options)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (
            ValueError,
            "^custom_routing_function must be None or False",
            {"custom_routing_function": len},
        ),
        (ValueError, "^scoring_func must be one of", {"scoring_func": "sqrtsoftplus"}),
        (ValueError, "^num_expert_group and topk_group must be given", {"use_grouped_topk": True}),
        (ValueError, "go with use_grouped_topk=True", {"num_expert_group": 4, "topk_group": 2}),
        (TypeError, r"fused_moe\(\) got an unexpected", {"use_fp9": False}),
        (ValueError, "^w1_scale must be None", {"w1_scale": torch.ones(1)}),
        (
            ValueError,
            r"^gating_output must have shape \[40, 8\]",
            {"gating_output": torch.ones(40, 9)},
        ),
        (TypeError, "^gating_output must be a tensor", {"gating_output": None}),
    ],
)
def test_border_of_fused_moe(error, match, options):
    x, experts, _, _ = layer()
    arguments = {
        "hidden_states": x,
        "w1": experts.gate_up_proj,
        "w2": experts.down_proj,
        "gating_output": router_logits(TOKENS, EXPERTS),
        "topk": 2,
        "renormalize": True,
    }
    with pytest.raises(error, match=match):
        fused_moe(**(arguments | options))


@pytest.mark.parametrize(
    ("match", "config", "options"),
    [
        ("^w1_scale must be None", {}, {"w1_scale": torch.ones(1)}),
        (
            r"moe_runner_config\.no_combine must be None or False, got True",
            {"no_combine": True},
            {},
        ),
        (r"moe_runner_config\.swiglu_limit must be None .* 10", {"swiglu_limit": 10.0}, {}),
        (r"moe_runner_config\.tomorrow must be None", {"tomorrow": "on"}, {}),
        (r"routed_scaling_factor must be > 0", {"routed_scaling_factor": -1.0}, {}),
        ("activation must be one of", {"activation": "swish"}, {}),
        ("must be 1.702, 1.0, 7.0", {"gemm1_alpha": 1.5, "gemm1_clamp_limit": 7.0}, {}),
    ],
)
def test_border_of_sglang(match, config, options):
    x, experts, weights, ids = layer()
    with pytest.raises(ValueError, match=match):
        sglang.fused_experts(
            x,
            experts.gate_up_proj,
            experts.down_proj,
            (weights, ids, None),
            SimpleNamespace(**config),
            **options,
        )
