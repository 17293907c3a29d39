"""What may happen to a model after apply: new weights, copies, errors, autograd, autocast."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from capmoe_kernels import Capacity
from capmoe_kernels.integrations.blocks import find_moe_blocks
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


def other_weights(model):
    """A state dictionary whose router and experts differ from the model's."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(weight.shape, generator=generator) / 5 if ".mlp." in name else weight
        for name, weight in model.state_dict().items()
    }


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_followed(input_ids, assign, pack):
    model = apply(tiny_model(), pack=pack)
    before = logits_of(model, input_ids)
    model.load_state_dict(other_weights(model), assign=assign)
    got = logits_of(model, input_ids)
    assert (got - before).abs().max() > 0.1
    torch.testing.assert_close(got, logits_of(undo(model), input_ids), **CLOSE)


@pytest.mark.parametrize("pack", [False, True])
def test_weights_that_are_written_or_converted_are_followed(input_ids, pack):
    model = apply(tiny_model(), capacity=HALF, pack=pack)
    for change in (
        lambda m: m.model.layers[0].mlp.experts.down_proj.mul_(2),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(torch.float32),
        lambda m: m.half(),
    ):
        logits_of(model, input_ids)
        change(model)
        got = logits_of(model, input_ids)
        fresh = logits_of(apply(copy.deepcopy(undo(model)), capacity=HALF, pack=pack), input_ids)
        assert torch.equal(got, fresh)
        apply(model, capacity=HALF, pack=pack)


def test_one_weight_of_another_dtype_is_refused(input_ids):
    model = apply(tiny_model())
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.bfloat16())
    with pytest.raises(TypeError, match=r"Experts\.gate_up_proj must be bfloat16"):
        logits_of(model, input_ids)


def test_weights_that_leave_memory_are_refused(input_ids):
    model = apply(tiny_model())
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(ValueError, match=r"layers.1.mlp must be in memory"):
        logits_of(model, input_ids)
    with pytest.raises(ValueError, match=r"layers.1.mlp must be in memory"):
        apply(model)


def test_a_block_on_two_devices_is_refused():
    model = tiny_model()
    model.model.layers[1].mlp.gate.to("meta")
    with pytest.raises(ValueError, match=r"layers.1.mlp must be on one device.*cpu, meta"):
        apply(model)


def test_experts_that_transformers_has_split_over_ranks_are_refused():
    model = tiny_model()
    model.model.layers[0].mlp.experts._is_expert_parallel = True
    with pytest.raises(ValueError, match="expert parallelism"):
        apply(model)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, saved_and_loaded])
@pytest.mark.parametrize("pack", [False, True])
def test_a_copy_has_weights_and_an_undo_of_its_own(input_ids, duplicate, pack):
    model = apply(tiny_model(), capacity=HALF, pack=pack)
    bounded = logits_of(model, input_ids)
    twin = duplicate(model)
    assert torch.equal(logits_of(twin, input_ids), bounded)
    for parameter in model.parameters():
        parameter.zero_()  # which a twin that still reads them would notice
    assert torch.equal(logits_of(twin, input_ids), bounded)
    dropless = logits_of(undo(twin), input_ids)
    assert torch.equal(dropless, logits_of(tiny_model(), input_ids))
    assert not any("forward" in vars(module) for module in twin.modules())
    assert all("forward" in vars(block.module) for block in find_moe_blocks(model))


def test_a_copy_of_a_block_alone_is_refused():
    model = apply(tiny_model())
    block = copy.deepcopy(model.model.layers[0].mlp)
    with pytest.raises(RuntimeError, match=r"copy of model\.layers\.0\.mlp without the model"):
        block(torch.randn(1, 2, 32))


def test_autograd_is_refused_by_name(input_ids):
    for pack in (False, True):
        model = apply(tiny_model(), pack=pack)
        with torch.enable_grad(), pytest.raises(RuntimeError, match=r"layers.0.mlp requires grad"):
            logits_of(model, input_ids)
        model.requires_grad_(False)
        model.model.layers[1].mlp.experts.down_proj.requires_grad_(True)
        with torch.enable_grad(), pytest.raises(RuntimeError, match=r"layers.1.mlp requires grad"):
            logits_of(model, input_ids)


def test_training_with_gradient_checkpointing_is_refused(input_ids):
    model = apply(tiny_model()).train()
    model.gradient_checkpointing_enable()
    with torch.enable_grad(), pytest.raises(RuntimeError, match="inference-only"):
        logits_of(model, input_ids)
    expected = logits_of(undo(model), input_ids)  # nothing is random in it
    torch.testing.assert_close(logits_of(apply(model), input_ids), expected, **CLOSE)


def test_autocast_is_right_or_refused(input_ids):
    model = tiny_model()
    exact = logits_of(model, input_ids)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = (logits_of(model, input_ids) - exact).abs()
        ours = (logits_of(apply(model), input_ids) - exact).abs()
    # A tie of the router's bfloat16 logits may send a token elsewhere: judge the bulk.
    assert ours.quantile(0.9) <= 2 * theirs.quantile(0.9)
    block = find_moe_blocks(model)[0].module
    wrong = pytest.raises(TypeError, match="hidden_states must be float32, got bfloat16")
    with torch.autocast("cpu", torch.bfloat16), wrong:
        block.forward(torch.randn(1, 2, 32).bfloat16())


def test_router_logits_are_refused_at_the_call_and_the_next_call_is_right(input_ids):
    model = apply(tiny_model(), capacity=HALF)
    expected = logits_of(model, input_ids)
    with pytest.raises(ValueError, match="output_router_logits must be False"):
        model(input_ids, output_router_logits=True)
    assert torch.equal(logits_of(model, input_ids), expected)


def test_a_call_that_raises_leaves_no_mask_behind(input_ids):
    model = apply(tiny_model(), capacity=HALF)
    block = find_moe_blocks(model)[0].module
    hidden = torch.randn(2, 30, 32)
    expected = block(hidden)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :20] = 0

    def fails(*_):
        raise ZeroDivisionError

    hook = model.model.layers[1].register_forward_pre_hook(fails)
    with pytest.raises(ZeroDivisionError):
        model(input_ids, attention_mask=mask, use_cache=False)
    hook.remove()
    assert torch.equal(block(hidden), expected)


def test_models_that_were_taken_over_one_by_one(input_ids):
    pair = torch.nn.ModuleDict({"one": tiny_model(), "two": tiny_model()})
    pair.config = pair["one"].config
    expected = logits_of(pair["one"], input_ids)
    apply(pair["one"], capacity=HALF)
    apply(pair["two"], capacity=Capacity(limit=1))
    with pytest.raises(RuntimeError, match="holds 2 models that were taken over one by one"):
        recording(pair).__enter__()
    apply(pair)
    with recording(pair) as records:
        torch.testing.assert_close(logits_of(pair["two"], input_ids), expected, **CLOSE)
    assert [record.layer for record in records] == list(range(LAYERS, 2 * LAYERS))
    undo(pair["two"])
    assert not any("forward" in vars(module) for module in pair.modules())
