"""Hooks and forwards of others that a block taken over would not call are refused by name."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from capmoe_kernels.integrations.transformers import apply, undo
from test_architectures_by_shape import build
from tiny_model import tiny_model

IDS = torch.arange(12).view(2, 6)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def doubled(module):
    theirs = module.forward

    @functools.wraps(theirs)
    def forward(self, *args):
        return 2 * theirs(*args)

    return types.MethodType(forward, module)


HOOKS = {
    "hook": lambda module: module.register_forward_hook(lambda *_: None),
    "pre-hook": lambda module: module.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("part", ["gate", "experts", "experts.act_fn"])
def test_hooks_on_routers_and_experts_are_refused(kind, part):
    model = tiny_model()
    handle = HOOKS[kind](model.model.layers[1].mlp.get_submodule(part))
    with pytest.raises(ValueError, match=rf"model\.layers\.1\.mlp\.{part} has a forward hook"):
        apply(model)
    assert not any("forward" in vars(module) for module in model.modules())
    handle.remove()
    undo(apply(model))


@pytest.mark.parametrize("part", ["", ".gate", ".experts"])
@pytest.mark.parametrize("hooked", [False, True])
def test_forwards_that_somebody_has_replaced_are_refused(part, hooked):
    model = tiny_model()
    module = model.get_submodule(f"model.layers.0.mlp{part}")
    module.forward = doubled(module)
    if hooked:
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    with pytest.raises(ValueError, match=rf"forward of model\.layers\.0\.mlp{part} was replaced"):
        apply(model)


def test_experts_found_by_shape_are_no_exception():
    model = build("granitemoe")
    experts = model.model.layers[0].block_sparse_moe.experts
    experts.forward = doubled(experts)
    with pytest.raises(ValueError, match=r"block_sparse_moe\.experts was replaced"):
        apply(model)


def test_hooks_that_still_run_and_those_of_transformers_and_accelerate_are_not_refused():
    model = tiny_model()
    model(IDS, output_router_logits=True)  # Transformers hooks the routers, for good
    mlp = model.model.layers[0].mlp
    assert mlp.gate._forward_hooks
    seen = []
    mlp.register_forward_hook(lambda *_: seen.append(1))
    for module in (mlp, mlp.gate, mlp.experts):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    other = model.model.layers[1].mlp
    other.forward = torch.compile(other.forward, backend="eager")
    expected = model(IDS, use_cache=False).logits
    torch.testing.assert_close(apply(model)(IDS, use_cache=False).logits, expected)
    apply(model)  # anew
    assert len(seen) == 2
    assert torch.equal(undo(model)(IDS, use_cache=False).logits, expected)


def test_a_layer_of_the_package_kernels_is_not_refused(monkeypatch):
    class Silu(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.silu(x)

    model = tiny_model()
    act_fn = model.model.layers[0].mlp.experts.act_fn
    monkeypatch.setattr(type(act_fn), "kernel_layer_name", "SiLU", raising=False)  # as it does
    act_fn.forward = types.MethodType(Silu.forward, act_fn)
    apply(model)
