"""What only models of Transformers 4 can show; test_transformers4.py runs this file under it."""

from __future__ import annotations

import copy
import itertools
from io import BytesIO

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from architecture_oracle import first, tokens_of
from architectures import CASES, blocks_of, build
from capmoe_kernels import Capacity
from capmoe_kernels.integrations.transformers import apply, undo, watch

OF_MODULES = [case for case in CASES if case.layout == "concat"]
HALF = Capacity(factor=0.5)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def bytes_held(model):
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }
    return sum(storages.values())


def test_it_is_transformers_4():
    assert transformers.__version__.startswith("4.57.")


@pytest.mark.parametrize("case", OF_MODULES, ids=str)
def test_experts_are_modules_and_their_memory_does_not_double(case):
    model = build(case)
    block = blocks_of(model)[0]
    assert isinstance(block.experts, torch.nn.ModuleList)
    before = bytes_held(model)
    apply(model)
    assert bytes_held(model) == before
    storages = {p.untyped_storage().data_ptr() for p in block.experts.parameters()}
    assert len(storages) == 2
    assert undo(model) is model
    assert bytes_held(model) == before


def test_a_model_that_was_taken_over_saves_as_before(tmp_path):
    model = build(CASES[3], seed=6)
    hidden = tokens_of(torch.float32)
    expected = first(blocks_of(model)[1](hidden))
    undo(apply(model)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(first(blocks_of(loaded)[1](hidden)), expected)


def test_a_copy_of_a_model_is_independent_and_follows_its_own_weights_when_taken_over_anew():
    model = apply(build(CASES[0]), capacity=HALF)
    hidden = tokens_of(torch.float32)
    bounded = first(blocks_of(model)[0](hidden))
    twin = copy.deepcopy(model)
    block = blocks_of(twin)[0]
    assert torch.equal(first(block(hidden)), bounded)
    apply(twin, capacity=HALF)
    for tensor in block.experts.parameters():
        tensor.zero_()
    assert (first(block(hidden)) == 0).all()
    assert torch.equal(first(blocks_of(model)[0](hidden)), bounded)


def test_a_graph_follows_other_memory_once_the_model_was_called_outside_of_it():
    torch._dynamo.reset()
    model = apply(build(CASES[0]))
    ids = torch.arange(12).view(2, 6)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    expert = blocks_of(model)[0].experts[0].up_proj.weight
    seen = [whole(ids, use_cache=False).logits]
    changes = (
        lambda: expert.mul_(2),
        lambda: setattr(expert, "data", expert.data * 2),
        lambda: model.half().float(),
        lambda: expert.mul_(2),
    )
    for change in changes:
        change()
        expected = model(ids, use_cache=False).logits
        seen.append(whole(ids, use_cache=False).logits)
        torch.testing.assert_close(seen[-1], expected)
    assert all((b - a).abs().max() > 1e-6 for a, b in itertools.pairwise(seen))


def test_watching_changes_no_number():
    model = build(CASES[0])
    hidden = tokens_of(torch.float32)
    before = blocks_of(model)[0](hidden)
    with watch(model) as records:
        watched = blocks_of(model)[0](hidden)
    assert len(records) == 1
    assert all(torch.equal(a, b) for a, b in zip(watched, before, strict=True))


def test_experts_with_biases_are_refused():
    case = next(case for case in CASES if case.model_type == "deepseek_v2")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp: .*mlp_bias must be False"):
        apply(build(case, mlp_bias=True))


def test_whether_autograd_records_is_asked_at_every_call():
    model = apply(build(CASES[0]))
    hidden = tokens_of(torch.float32)
    block = blocks_of(model)[0]
    expected = first(block(hidden))
    with torch.enable_grad():
        with pytest.raises(RuntimeError, match="requires grad"):
            block(hidden)
        model.requires_grad_(False)
        assert torch.equal(first(block(hidden)), expected)
        block.experts[1].up_proj.requires_grad_(True)
        with pytest.raises(RuntimeError, match="requires grad"):
            block(hidden)


def test_what_undo_leaves_in_one_memory_is_saved_alone_as_clones():
    """As docs/architectures.md says."""

    def saved(tensors):
        file = BytesIO()
        torch.save(tensors, file)
        return file.tell()

    def clones(module):
        return [p.clone() for p in module.parameters()]

    model = build(CASES[0])
    expert = blocks_of(model)[0].experts[0]
    alone = saved(clones(expert))
    undo(apply(model))
    assert saved([p.detach() for p in expert.parameters()]) > 4 * alone
    assert saved(clones(expert)) == alone
