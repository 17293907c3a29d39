"""Which experts modules fit by their shape, and by what word the others are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

from capmoe_kernels import Capacity, Gating
from capmoe_kernels.integrations.transformers import apply, find_moe_blocks

if not transformers.__version__.startswith("5."):
    pytest.skip("experts have a shape of their own since Transformers 5", allow_module_level=True)

from transformers.integrations.moe import use_experts_implementation

# Transposed, [E, in, out].
WEIGHTS = {
    "gate_up_proj": (2, 8, 12),
    "down_proj": (2, 6, 8),
    "gate_up_proj_bias": (2, 12),
    "down_proj_bias": (2, 8),
}


def marked(**flags):
    """A model of one experts module that Transformers' decorator has marked."""
    transposed, biased = flags.get("is_transposed", False), flags.get("has_bias", False)

    @use_experts_implementation(**flags)
    class Marked(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.num_experts = 2
            for name, shape in WEIGHTS.items():
                weight = torch.randn(shape)
                if weight.dim() == 3 and not transposed:
                    weight = weight.mT.contiguous()
                if weight.dim() == 3 or biased:
                    setattr(self, name, nn.Parameter(weight))
            self.act_fn = nn.SiLU()

        def forward(self, hidden_states, top_k_index, top_k_weights):
            raise NotImplementedError

    model = nn.Module()
    model.config = SimpleNamespace(_experts_implementation="batched_mm", model_type="mine")
    model.experts = Marked(model.config)
    return model


def check_equal(model):
    hidden, ids, weights = torch.randn(9, 8), torch.randint(0, 2, (9, 1)), torch.rand(9, 1)
    with torch.no_grad():
        theirs = model.experts(hidden, ids, weights)
        ours = apply(model).experts(hidden, ids, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_layout_that_fits(is_transposed, has_bias):
    check_equal(marked(is_transposed=is_transposed, has_bias=has_bias))


def test_the_weights_are_the_models_own():
    model = marked()
    (block,) = find_moe_blocks(model)
    assert block.name == "experts"
    assert block.parts.experts.gate_up_proj is model.experts.gate_up_proj
    assert block.parts.experts.down_proj is model.experts.down_proj


@pytest.mark.parametrize(
    "name", ["silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_python"]
)
def test_every_activation_that_transformers_has_for_it(name):
    model = marked()
    model.experts.act_fn = transformers.activations.ACT2FN[name]
    check_equal(model)


@pytest.mark.parametrize("function", [F.silu, F.gelu])
def test_activations_that_are_functions(function):
    model = marked()
    _act(function)(model.experts)
    check_equal(model)


def _act(function):
    def change(module):
        del module.act_fn  # a module, whose place no function may take
        module.act_fn = function

    return change


def _set(name, value):
    return lambda module: setattr(module, name, value)


def _on_class(name, value):
    return lambda module: setattr(type(module), name, value)


def silu(x):
    return x


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_set("has_post_expert_norm", True), "has_post_expert_norm must be False"),
        (_set("is_concatenated", False), "is_concatenated must be True"),
        (_set("is_transposed", True), "Experts.gate_up_proj must"),
        (_set("has_bias", True), "gate_up_proj_bias must be a parameter.*got none"),
        (_set("_is_expert_parallel", True), "under expert parallelism"),
        (_set("_apply_gate", torch.sigmoid), "_apply_gate must be the default"),
        (_on_class("_apply_gate", lambda self, x: x), "_apply_gate must be the default"),
        (_set("act_fn", nn.Tanh()), "hidden_act must be one of gelu, gelu_tanh, silu, got Tanh"),
        (_set("act_fn", nn.ReLU()), "hidden_act must be one of .*, got ReLU"),
        (_act(silu), "hidden_act must be one of .*, got silu"),
        (lambda module: delattr(module, "has_gate"), "must have has_gate"),
        (
            _on_class("forward", lambda self, hidden_states, routing: None),
            "forward must take hidden_states, top_k_index, top_k_weights, got hidden_states, rout",
        ),
        (
            lambda module: module.double(),
            r"gate_up_proj must be a parameter of float32.*got Parameter of torch.float64",
        ),
        (_set("down_proj", nn.Parameter(torch.randn(2, 8, 5))), "Experts.gate_up_proj must"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, word):
    model = marked()
    change(model.experts)
    with pytest.raises(ValueError, match=f"it knows those of .*experts does not fit: .*{word}"):
        apply(model)
    assert "forward" not in vars(model.experts)


@pytest.mark.parametrize(
    ("model_type", "settings", "word"),
    [
        ("minimax_m3_vl_text", {}, "_apply_gate must be the default.*MiniMaxM3VLExperts"),
        ("llama4_text", {"moe_layers": [0, 1]}, "must have has_gate"),
        ("openai_privacy_filter", {}, "forward must take .*router_indices"),
    ],
)
def test_real_models_that_do_not_fit(model_type, settings, word):
    config = AutoConfig.for_model(model_type, num_hidden_layers=2, **settings)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    with pytest.raises(ValueError, match=f"experts does not fit: .*{word}"):
        find_moe_blocks(model)


def test_experts_that_peft_wraps_are_refused():
    model = nn.Module()
    model.experts = nn.Module()
    model.experts.base_layer = marked().experts
    with pytest.raises(ValueError, match="merge the adapter first"):
        find_moe_blocks(model)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"gating": Gating(top_k=1)}, "gating must be None"),
        ({"num_ranks": 2}, "num_ranks must be 1"),
        ({"capacity": Capacity(factor=1.0, expand="rank", extra=1)}, "beyond the top-k"),
        ({"capacity": Capacity(factor=1.0, reroute_rounds=2)}, "beyond the top-k"),
    ],
)
def test_what_only_a_known_router_can_do_is_refused(options, word):
    with pytest.raises(ValueError, match=f"{word}.*found by its shape"):
        apply(marked(), **options)
