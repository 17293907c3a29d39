"""PEFT's adapters of shared experts: they are run where PEFT leaves them on the shared expert."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from architectures import CASES, build
from capmoe_kernels.integrations.transformers import apply, undo

INPUT_IDS = torch.arange(40).view(2, 20)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def model_of(model_type):
    return build(next(case for case in CASES if case.model_type == model_type))


def adapted(model, targets):
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    wrapped = get_peft_model(model, config).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.3)
    return wrapped


@pytest.mark.parametrize("order", ["apply first", "peft first"])
def test_an_adapter_of_the_shared_expert_is_run(order):
    targets = r".*\.shared_expert\.(gate|up|down)_proj"
    plain = model_of("qwen2_moe")(INPUT_IDS, use_cache=False).logits
    expected = adapted(model_of("qwen2_moe"), targets)(INPUT_IDS, use_cache=False).logits
    assert (expected - plain).abs().max() > 0.05
    model = model_of("qwen2_moe")
    wrapped = adapted(apply(model) if order == "apply first" else model, targets)
    if order == "peft first":
        apply(wrapped)
    ours = wrapped(INPUT_IDS, use_cache=False).logits
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(undo(wrapped)(INPUT_IDS, use_cache=False).logits, expected)


@pytest.mark.skipif(transformers.__version__ < "5", reason="PEFT converts for Transformers 5 only")
def test_peft_puts_deepseeks_adapters_on_the_routed_experts_and_they_are_refused():
    """docs/architectures.md says so: names of the shared experts' modules, too."""
    wrapped = adapted(model_of("deepseek_v3"), ["gate_proj", "up_proj", "down_proj"])
    names = {name for name, _ in wrapped.named_parameters() if "lora_A" in name}
    in_block = {name for name in names if ".layers.1.mlp." in name}
    assert in_block
    assert all(".mlp.experts." in name for name in in_block)
    with pytest.raises(ValueError, match=r"mlp\.experts.*adapter of PEFT.*merge_and_unload"):
        apply(wrapped)
    with pytest.raises(ValueError, match="without also targeting gate_proj"):
        adapted(model_of("deepseek_v3"), r".*\.shared_experts\.(up|down)_proj")
