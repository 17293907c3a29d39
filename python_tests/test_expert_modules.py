"""Transformers 4's experts, a module for each: their weights in one tensor, and still the model's.

The modules here are plain ones; test_transformers4.py runs the real models.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from capmoe_kernels.integrations.expert_modules import read_expert_modules


class Expert(nn.Module):
    def __init__(self, names=("gate_proj", "up_proj", "down_proj"), bias=False):
        super().__init__()
        for name, sizes in zip(names, [(8, 6), (8, 6), (6, 8)], strict=True):
            setattr(self, name, nn.Linear(*sizes, bias=bias))
        self.act_fn = nn.SiLU()


def some_experts(**options):
    return nn.ModuleList(Expert(**options) for _ in range(3))


def test_gate_rows_stand_before_up_rows():
    for names in (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")):
        modules = some_experts(names=names)
        gate, up, down = ([getattr(e, n).weight.clone() for e in modules] for n in names)
        experts = read_expert_modules(modules)
        expected = torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)])
        assert torch.equal(experts.gate_up_proj, expected)
        assert torch.equal(experts.down_proj, torch.stack(down))
        assert experts.activation == "silu"


def test_parameters_stay_and_share_memory_both_ways():
    modules = some_experts()
    before = {name: (id(p), p.clone()) for name, p in modules.named_parameters()}
    experts = read_expert_modules(modules)
    for name, parameter in modules.named_parameters():
        identity, value = before[name]
        assert id(parameter) == identity
        assert torch.equal(parameter, value)
        assert parameter.is_contiguous()
        assert parameter.requires_grad
    storages = {p.untyped_storage().data_ptr() for p in modules.parameters()}
    assert storages == {
        w.untyped_storage().data_ptr() for w in (experts.gate_up_proj, experts.down_proj)
    }
    with torch.no_grad():
        modules[1].up_proj.weight.fill_(7.0)
        experts.down_proj[2].fill_(5.0)
    assert (experts.gate_up_proj[1, 6:] == 7.0).all()
    assert (experts.gate_up_proj[1, :6] != 7.0).all()
    assert (modules[2].down_proj.weight == 5.0).all()


def test_a_second_reading_moves_nothing():
    modules = some_experts()
    one, two = read_expert_modules(modules), read_expert_modules(modules)
    assert one.gate_up_proj.data_ptr() == two.gate_up_proj.data_ptr()
    assert torch.equal(one.gate_up_proj, two.gate_up_proj)
    modules[1].gate_proj.weight = nn.Parameter(torch.ones(6, 8))
    three = read_expert_modules(modules)
    assert three.gate_up_proj.data_ptr() != one.gate_up_proj.data_ptr()
    assert (three.gate_up_proj[1, :6] == 1.0).all()


def test_a_copy_of_a_model_has_weights_of_its_own():
    modules = some_experts()
    one = read_expert_modules(modules)
    twin = copy.deepcopy(modules)
    two = read_expert_modules(twin)
    with torch.no_grad():
        twin[0].up_proj.weight.zero_()
    assert (two.gate_up_proj[0, 6:] == 0).all()
    assert (one.gate_up_proj[0, 6:] != 0).all()
    assert (modules[0].up_proj.weight != 0).all()


def test_only_the_parameters_require_grad():
    modules = some_experts()
    for _ in range(2):  # moved, then found
        experts = read_expert_modules(modules)
        assert not experts.gate_up_proj.requires_grad
        assert not experts.down_proj.requires_grad
        assert all(p.requires_grad for p in modules.parameters())


@pytest.mark.parametrize("built_in", [False, True])
@pytest.mark.parametrize("read_in", [False, True])
def test_a_parameter_stays_the_kind_of_tensor_it_was(built_in, read_in):
    with torch.inference_mode(built_in):
        modules = some_experts()
    with torch.inference_mode(read_in):
        experts = read_expert_modules(modules)
    assert all(p.is_inference() is built_in for p in modules.parameters())
    with torch.inference_mode(built_in), torch.no_grad():
        modules[0].gate_proj.weight.zero_()
    assert (experts.gate_up_proj[0, :6] == 0).all()


def _act(modules):
    modules[1].act_fn = nn.GELU()


def _tanh(modules):
    for module in modules:
        module.act_fn = nn.Tanh()


def _wrapped(modules):
    class Lora(nn.Linear):
        pass

    modules[2].gate_proj = Lora(8, 6, bias=False)


def _another_size(modules):
    modules[2].down_proj = nn.Linear(6, 9, bias=False)


def _another_dtype(modules):
    modules[2].bfloat16()


def _no_name(modules):
    del modules[0].up_proj


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_act, "hidden_act must be one of .*, got GELU"),
        (_tanh, "hidden_act must be one of .*, got Tanh"),
        (_wrapped, "gate_proj of an expert must be nn.Linear.*got Lora"),
        (_another_size, "one shape, dtype and device"),
        (_another_dtype, "one shape, dtype and device"),
        (_no_name, "gated MLPs with gate_proj, up_proj, down_proj or w1, w3, w2"),
        (lambda modules: modules.to("meta"), "must be in memory"),
    ],
)
def test_what_is_no_such_expert_is_refused_and_stays(change, word):
    modules = some_experts()
    change(modules)
    places = [p.data_ptr() for p in modules.parameters()]
    with pytest.raises(ValueError, match=word):
        read_expert_modules(modules)
    assert [p.data_ptr() for p in modules.parameters()] == places


def test_biases_are_refused():
    with pytest.raises(ValueError, match=r"must have no bias \(mlp_bias must be False\)"):
        read_expert_modules(some_experts(bias=True))


def test_no_experts_at_all_are_refused():
    with pytest.raises(ValueError, match="experts must be gated MLPs"):
        read_expert_modules(nn.ModuleList())


def test_experts_of_several_activations_are_refused():
    modules = some_experts()
    modules[1].act_fn = ACT2FN["gelu_pytorch_tanh"]
    with pytest.raises(ValueError, match=r"one hidden_act, got \['gelu_tanh', 'silu'\]"):
        read_expert_modules(modules)
