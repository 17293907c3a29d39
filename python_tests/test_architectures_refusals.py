"""Settings of known architectures that the kernels don't compute: refused by name and value."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from architecture_oracle import tokens_of
from architectures import CASES, blocks_of, build
from capmoe_kernels import Gating
from capmoe_kernels.integrations import blocks, reading
from capmoe_kernels.integrations.transformers import apply, find_moe_blocks, undo


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def case_of(model_type):
    return next(case for case in CASES if case.model_type == model_type)


def refused(model, word):
    with pytest.raises(ValueError, match=rf"^model\.layers\.\d\.\w+: .*{word}"):
        apply(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("model_type", "settings", "word"),
    [
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method must be 'greedy' or 'group_limi"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func must be 'softmax', got 'sigm"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func must be 'sigmoid', got 'softm"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method must be 'noaux_tc', got 'greedy'"),
        ("deepseek_v3", {"routed_scaling_factor": -1.0}, "Gating.scaling"),
        ("olmoe", {"hidden_act": "tanh"}, "hidden_act must be one of gelu, .*, got Tanh"),
        ("mixtral", {"hidden_act": "relu"}, "hidden_act must be one of gelu, .*, got ReLU"),
        ("qwen2_moe", {"hidden_act": "quick_gelu"}, "hidden_act must be one of .*QuickGELU"),
    ],
)
def test_a_setting_is_refused(model_type, settings, word):
    refused(build(case_of(model_type), **settings), word)


@pytest.mark.parametrize(("model_type", "top_k"), [("olmoe", 9), ("deepseek_v2", 5)])
def test_a_router_that_asks_for_more_than_it_can_reach_is_refused(model_type, top_k):
    settings = {"num_experts_per_tok": top_k}
    if model_type == "deepseek_v2":
        settings |= {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    refused(build(case_of(model_type), **settings), f"Gating.top_k must be at most {top_k - 1}")


def with_a_class_that_overrides(model, name):
    """``model`` with blocks of a class of the same name, as a checkpoint's own code has it."""
    theirs = type(blocks_of(model)[0])

    def again(self, *args, **kwargs):
        return getattr(theirs, name)(self, *args, **kwargs)

    own = {name: again, "__module__": "transformers_modules.modeling_deepseek"}
    for block in blocks_of(model):
        block.__class__ = type(theirs.__name__, (theirs,), own)
    return model


@pytest.mark.parametrize("model_type", ["olmoe", "deepseek_v2", "gpt_oss"])
def test_a_block_of_another_package_is_refused_whatever_its_name(model_type):
    model = with_a_class_that_overrides(build(case_of(model_type)), "forward")
    refused(model, "class must be transformers' own, got .* of transformers_modules.modeling_deep")
    apply(with_a_class_that_overrides(build(case_of(model_type)), "extra_repr"))


@pytest.mark.parametrize(("package", "fits"), [("transformers_modules", True), ("trans", False)])
def test_a_registration_may_name_another_package(monkeypatch, package, fits):
    known = blocks._ARCHITECTURES
    mine = replace(known["olmoe"], package=package)
    monkeypatch.setattr(blocks, "_ARCHITECTURES", {**known, "olmoe": mine})
    model = with_a_class_that_overrides(build(case_of("olmoe")), "forward")
    if fits:
        apply(model)
    else:
        refused(model, "class must be trans' own")


@pytest.mark.parametrize(("name", "value"), [("alpha", 1.5), ("limit", 8.0)])
def test_another_clamp_of_gpt_oss_is_refused(name, value):
    model = build(case_of("gpt_oss"))
    setattr(blocks_of(model)[1].experts, name, value)
    refused(model, f"swiglu_{name} must be {1.702 if name == 'alpha' else 7.0}, got {value}")


def test_mxfp4_says_what_to_do():
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

    model = build(case_of("gpt_oss"))
    for block in blocks_of(model):
        block.experts = Mxfp4GptOssExperts(model.config)
    refused(model, r"MXFP4.*quantization_config=Mxfp4Config\(dequantize=True\)")


def test_a_part_of_gpt_oss_experts_is_refused():
    """As Transformers 4 leaves them under tp_plan="auto"."""
    model = build(case_of("gpt_oss"))
    for block in blocks_of(model):
        for name, weight in list(block.experts.named_parameters()):
            setattr(block.experts, name, nn.Parameter(weight[:4].clone()))
    refused(model, "experts must be all 8 that the router chooses among, got 4: .*without tp_plan")


def test_jitter_is_refused_in_training_also_later():
    case = case_of("mixtral")
    model = build(case, router_jitter_noise=0.1)
    block = blocks_of(model)[0]
    hidden = tokens_of(torch.float32)
    refused(model.train(), "router_jitter_noise must be 0 in training, got 0.1")
    apply(model.eval())
    block(hidden)
    model.train()
    with pytest.raises(ValueError, match="router_jitter_noise must be 0 in training"):
        block(hidden)
    undo(model)
    apply(build(case, router_jitter_noise=0.0).train())


class Quantised(nn.Parameter):
    """As bitsandbytes has them: a kind of parameter that stands for other numbers."""


class QuantisedLinear(nn.Linear):
    """As fp8 and bitsandbytes have them."""


@pytest.mark.parametrize("model_type", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_quantised_experts_are_refused(model_type):
    model = build(case_of(model_type))
    experts = blocks_of(model)[0].experts
    if isinstance(experts, nn.ModuleList):
        experts[1].up_proj = QuantisedLinear(32, 16, bias=False)
        refused(model, "up_proj of an expert must be nn.Linear.*got QuantisedLinear")
        experts[1].up_proj = nn.Linear(32, 16, bias=False)
        weight = torch.zeros(16, 32, dtype=torch.uint8)
        experts[1].up_proj.weight = nn.Parameter(weight, requires_grad=False)
        refused(model, "neither quantised.*got Parameter of torch.uint8")
        return
    for weight in (
        Quantised(experts.down_proj.data),
        nn.Parameter(experts.down_proj.data.to(torch.float8_e4m3fn), requires_grad=False),
    ):
        experts.down_proj = weight
        refused(model, f"down_proj must be .*neither quantised.*got {type(weight).__name__} of")


def test_a_router_that_is_wrapped_is_refused():
    model = build(case_of("deepseek_v3"))
    router = blocks_of(model)[0].gate
    weight = router.weight
    del router.weight
    router.weight = weight.data
    refused(model, "weight must be a parameter .*got none")


@pytest.mark.parametrize("model_type", ["olmoe", "deepseek_v2", "gpt_oss"])
def test_experts_that_peft_wraps_are_refused(model_type):
    model = build(case_of(model_type))
    block = blocks_of(model)[0]
    wrapper = nn.Module()
    if isinstance(block.experts, nn.ModuleList):
        wrapper.base_layer = block.experts[3].up_proj
        block.experts[3].up_proj = wrapper
        refused(model, "up_proj of an expert must be nn.Linear.*got Module")
        return
    wrapper.base_layer = block.experts
    wrapper.alpha, wrapper.limit = 1.702, 7.0  # PEFT's wrapper hands on what it doesn't have
    block.experts = wrapper
    refused(model, "gate_up_proj must be a parameter .*neither quantised nor wrapped.*got none")


def test_the_setting_that_a_router_lacks_is_named():
    model = build(case_of("deepseek_v3"))
    del blocks_of(model)[0].gate.norm_topk_prob
    refused(model, "must have norm_topk_prob, by which it routes")


def test_the_first_name_that_a_module_has_is_read():
    module, block = nn.Module(), nn.Module()
    module.n_group, block.num_group, block.top_k = 3, 4, 5
    assert reading.setting(module, "num_group", "n_group", block=block) == 3
    assert reading.setting(module, "top_k", block=block) == 5
    with pytest.raises(ValueError, match="must have top_k"):
        reading.setting(module, "top_k")


@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v2"])
def test_what_is_read_is_what_the_model_was_built_with(model_type):
    for case in CASES:
        if case.model_type == model_type:
            for block in find_moe_blocks(build(case)):
                assert block.parts.gating == case.gating
                assert isinstance(block.parts.gating, Gating)
