"""Models that Accelerate dispatches, PEFT wraps, and safetensors keeps."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from capmoe_kernels import Capacity
from capmoe_kernels.integrations.transformers import apply, recording, undo
from tiny_model import LAYERS, logits_of, tiny_model, token_ids

HALF = Capacity(factor=0.5)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def input_ids():
    return token_ids(2, 30)


def is_bounded(model, input_ids):
    with recording(model) as records:
        logits_of(model, input_ids)
    assert len(records) == LAYERS
    return all(int(record.tokens_per_expert.max()) <= 8 for record in records)


def own_forwards(model):
    names = ("forward", "_old_forward")
    return {m: [n for n in names if n in vars(m)] for m in model.modules()}


# Accelerate: hooks call the forward that they found.


def hook(model):
    for layer in model.model.layers:
        add_hook_to_module(layer.mlp, AlignDevicesHook(execution_device="cpu"))


def unhook(model):
    remove_hook_from_module(model, recurse=True)


def take(model):
    apply(model, capacity=HALF)


@pytest.mark.parametrize(
    "steps",
    [
        (hook, take, undo),
        (take, hook, undo),
        (hook, take, unhook, undo),
        (take, hook, unhook, undo),
    ],
    ids=lambda steps: "-".join(step.__name__ for step in steps),
)
def test_hooks_may_come_before_or_after(input_ids, steps):
    model = tiny_model()
    expected = logits_of(model, input_ids)
    for step in steps[:-1]:
        step(model)
    assert is_bounded(model, input_ids)
    steps[-1](model)
    assert torch.equal(logits_of(model, input_ids), expected)
    if unhook not in steps:
        unhook(model)
    assert torch.equal(logits_of(model, input_ids), expected)
    for layer in model.model.layers:
        # What Accelerate leaves behind is the class's own method, as attribute.
        left = vars(layer.mlp).get("forward", layer.mlp.forward)
        assert left.__func__ is type(layer.mlp).forward
        assert "_old_forward" not in vars(layer.mlp)


def test_a_dispatched_model(input_ids):
    model = tiny_model()
    expected = logits_of(model, input_ids)
    devices = {"model": "cpu", "lm_head": "cpu"}
    dispatched = dispatch_model(model, devices, force_hooks=True)
    hooked = own_forwards(dispatched)
    apply(dispatched)
    torch.testing.assert_close(logits_of(dispatched, input_ids), expected, **CLOSE)
    take(dispatched)
    assert is_bounded(dispatched, input_ids)
    undo(dispatched)
    assert own_forwards(dispatched) == hooked
    assert torch.equal(logits_of(dispatched, input_ids), expected)


def test_offloaded_weights_are_refused(input_ids, tmp_path):
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    devices = {**parts, "lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    offloaded = dispatch_model(tiny_model(), devices, offload_dir=tmp_path, main_device="cpu")
    with pytest.raises(ValueError, match=r"layers.1.mlp must be in memory"):
        apply(offloaded)
    later = dispatch_model(apply(tiny_model()), devices, offload_dir=tmp_path, main_device="cpu")
    with pytest.raises(ValueError, match=r"layers.1.mlp must be in memory"):
        logits_of(later, input_ids)


# Checkpoints.


def test_a_checkpoint_of_a_model_taken_over_is_the_same_file(input_ids, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "before")
    take(model)
    model.save_pretrained(tmp_path / "after")
    for name in ("model.safetensors", "config.json"):
        before, after = ((tmp_path / each / name).read_bytes() for each in ("before", "after"))
        assert before == after
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    expected = logits_of(loaded, input_ids)
    torch.testing.assert_close(logits_of(apply(loaded), input_ids), expected, **CLOSE)


# PEFT.


def adapted(model, **config):
    """The model with a LoRA that does something."""
    torch.manual_seed(3)
    wrapped = get_peft_model(model, LoraConfig(r=2, **config)).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.3)
    return wrapped


ATTENTION = {"target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("first", ["apply", "peft"])
@pytest.mark.parametrize("given_back", ["wrapped", "base"])
def test_adapters_of_attention_work(input_ids, first, given_back):
    base = tiny_model()
    plain = logits_of(base, input_ids)
    expected = logits_of(adapted(tiny_model(), **ATTENTION), input_ids)
    assert (expected - plain).abs().max() > 0.1
    wrapped = adapted(apply(base) if first == "apply" else base, **ATTENTION)
    if first == "peft":
        apply(wrapped)
    torch.testing.assert_close(logits_of(wrapped, input_ids), expected, **CLOSE)
    with wrapped.disable_adapter():
        torch.testing.assert_close(logits_of(wrapped, input_ids), plain, **CLOSE)
    take(wrapped)
    assert is_bounded(wrapped, input_ids)
    undo(wrapped if given_back == "wrapped" else base)
    assert torch.equal(logits_of(wrapped, input_ids), expected)


ON_EXPERTS = {
    "experts": {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]},
    "router": {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
    "whole router": {**ATTENTION, "modules_to_save": ["gate"]},
    "whole block": {**ATTENTION, "modules_to_save": ["mlp"]},
}


@pytest.mark.parametrize("target", ON_EXPERTS)
def test_adapters_of_experts_and_routers_are_refused_before_apply(input_ids, target):
    wrapped = adapted(tiny_model(), **ON_EXPERTS[target])
    before = own_forwards(wrapped)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp.*adapter of PEFT.*merge_and_unload"):
        apply(wrapped)
    assert own_forwards(wrapped) == before
    merged = wrapped.merge_and_unload()
    expected = logits_of(merged, input_ids)
    torch.testing.assert_close(logits_of(apply(merged), input_ids), expected, **CLOSE)


@pytest.mark.parametrize("target", ON_EXPERTS)
def test_adapters_of_experts_and_routers_are_refused_after_apply(input_ids, target):
    expected = logits_of(adapted(tiny_model(), **ON_EXPERTS[target]), input_ids)
    wrapped = adapted(apply(tiny_model()), **ON_EXPERTS[target])
    with pytest.raises((ValueError, RuntimeError), match=r"layers\.0\.mlp.*(PEFT|adapter)"):
        logits_of(wrapped, input_ids)
    assert torch.equal(logits_of(undo(wrapped), input_ids), expected)


def test_a_merge_after_apply_is_followed(input_ids):
    config = ON_EXPERTS["experts"]
    expected = logits_of(adapted(tiny_model(), **config), input_ids)
    merged = adapted(apply(tiny_model()), **config).merge_and_unload()
    torch.testing.assert_close(logits_of(merged, input_ids), expected, atol=1e-4, rtol=1e-4)
