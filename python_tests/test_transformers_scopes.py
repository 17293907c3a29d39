"""Which capacity bounds which call: prefill, decoding, scopes, one per block."""

from __future__ import annotations

import json

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import Capacity
from capmoe_kernels.integrations.capacity_file import read_capacities, write_capacities
from capmoe_kernels.integrations.transformers import (
    apply,
    capacity_scope,
    real_tokens,
    recording,
    undo,
)
from tiny_model import EXPERTS, LAYERS, TOP_K, tiny_model, token_ids, tokens_limit

HALF = Capacity(factor=0.5)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def input_ids():
    return token_ids()


def loads(model, input_ids, **inputs):
    """[layers, E]: pairs kept in one call."""
    with recording(model) as records:
        model(input_ids, use_cache=False, **inputs)
    return torch.stack([record.tokens_per_expert for record in records])


def test_prefill_is_bounded_and_decoding_is_not(input_ids):
    model = apply(tiny_model(), capacity=Capacity(limit=1))
    assert loads(model, input_ids).max() == 1
    one_each = input_ids[:, :1]
    assert loads(model, one_each).sum() == LAYERS * 3 * TOP_K
    apply(model, decode=Capacity(limit=1))
    assert loads(model, one_each).max() == 1
    assert loads(model, input_ids).sum() == LAYERS * 150 * TOP_K


def test_generate_decodes_dropless(input_ids):
    model = apply(tiny_model(), capacity=HALF)
    with recording(model) as records:
        model.generate(input_ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    kept = [int(record.tokens_per_expert.sum()) for record in records]
    assert [record.num_tokens for record in records] == [150] * LAYERS + [3] * LAYERS * 3
    assert all(each <= EXPERTS * tokens_limit(150, 0.5) for each in kept[:LAYERS])
    assert kept[LAYERS:] == [3 * TOP_K] * LAYERS * 3


def test_scope_changes_and_gives_back_even_after_an_error(input_ids):
    model = apply(tiny_model(), capacity=HALF, decode=HALF)
    bounded = loads(model, input_ids)
    with capacity_scope(model):
        assert loads(model, input_ids).sum() == LAYERS * 150 * TOP_K
        with capacity_scope(model, Capacity(limit=2)):
            assert loads(model, input_ids).max() == 2
    with pytest.raises(ZeroDivisionError), capacity_scope(model, Capacity(limit=0)):
        raise ZeroDivisionError
    assert torch.equal(loads(model, input_ids), bounded)
    with pytest.raises(ValueError, match="experts_per_device"):
        capacity_scope(model, Capacity(limit=1, scope="device", experts_per_device=3)).__enter__()
    assert torch.equal(loads(model, input_ids), bounded)


def test_a_scope_gives_the_bound_of_decoding_back_and_checks_it(input_ids):
    model = apply(tiny_model(), decode=Capacity(limit=1))
    step = input_ids[:, :1]
    bounded = loads(model, step)
    with capacity_scope(model):
        assert loads(model, step).sum() == LAYERS * 3 * TOP_K
    with capacity_scope(model, decode=Capacity(limit=0)):
        assert loads(model, step).sum() == 0
    assert torch.equal(loads(model, step), bounded)
    wrong = Capacity(limit=1, scope="device", experts_per_device=3)
    with pytest.raises(ValueError, match="experts_per_device"):
        capacity_scope(model, decode=wrong).__enter__()
    assert torch.equal(loads(model, step), bounded)


def test_every_block_may_have_its_own(input_ids, tmp_path):
    mine = [None, Capacity(limit=3, policy="keep_last")]
    write_capacities(tmp_path / "capacity.json", mine, {"model": "tiny"})
    for capacity in (mine, tmp_path / "capacity.json", str(tmp_path / "capacity.json")):
        kept = loads(apply(tiny_model(), capacity=capacity), input_ids)
        assert kept[0].sum() == 150 * TOP_K
        assert kept[1].max() == 3


def test_a_gate_of_ones_own(input_ids):
    model = apply(tiny_model(), cm.Gating(top_k=TOP_K + 1))
    assert loads(model, input_ids).sum() == LAYERS * 150 * (TOP_K + 1)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "is not JSON"),
        ("[]", "format"),
        ({"version": 2}, "version 1, got 2"),
        ({"layers": 3}, "list of layers, got int"),
        ({"layers": [None, 3]}, "layer 1 must be an object"),
        ({"layers": [{"facto": 1}]}, "layer 0 has 'facto'"),
        ({"layers": [{"factor": -1}]}, "layer 0: Capacity.factor"),
    ],
)
def test_a_capacity_file_that_is_none_is_named(tmp_path, content, word):
    if isinstance(content, dict):
        whole = {"format": "capmoe_kernels.capacity", "version": 1, "layers": []}
        content = json.dumps(whole | content)
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"broken.json.*{word}"):
        apply(tiny_model(), capacity=path)


def test_capacities_survive_their_file(tmp_path):
    capacities = [
        None,
        Capacity(),
        Capacity(factor=1.25, policy="random", seed=3),
        Capacity(limit=7, expand="local", local_experts=(0, 2), expand_priority="topk_first"),
    ]
    write_capacities(tmp_path / "capacity.json", capacities)
    assert read_capacities(tmp_path / "capacity.json") == capacities


def test_what_is_no_capacity_is_refused_and_changes_nothing(input_ids):
    model = tiny_model()
    for wrong, error, word in [
        (1.5, TypeError, "capacity must be a Capacity, None"),
        ([1.5, None], TypeError, "capacity must hold Capacity or None, got float"),
        ([HALF], ValueError, "2 MoE blocks, got 1"),
        (Capacity(limit=1, scope="device", experts_per_device=3), ValueError, "must divide"),
    ]:
        with pytest.raises(error, match=word):
            apply(model, capacity=wrong)
        with pytest.raises(error, match=word.replace("capacity", "decode")):
            apply(model, decode=wrong)
    with pytest.raises(FileNotFoundError):
        apply(model, capacity="no such file.json")
    with pytest.raises(TypeError, match=r"gating must be a Gating.*Capacity: .* capacity="):
        apply(model, HALF)
    with pytest.raises(TypeError, match="gating must be a Gating or None, got int"):
        apply(model, 3)
    assert not any("forward" in vars(module) for module in model.modules())


def test_scopes_need_a_model_that_is_taken_over():
    model = tiny_model()
    for scope in (capacity_scope(model), recording(model), real_tokens(model, torch.ones(1, 1))):
        with pytest.raises(RuntimeError, match="OlmoeForCausalLM is not taken over: call apply"):
            scope.__enter__()
    assert undo(model) is model


def test_a_copy_of_a_model_is_given_back_by_itself(input_ids):
    import copy

    model = tiny_model()
    expected = model(input_ids, use_cache=False).logits
    twin = copy.deepcopy(apply(model, capacity=HALF))
    bounded = twin(input_ids, use_cache=False).logits
    assert torch.equal(bounded, model(input_ids, use_cache=False).logits)
    undo(twin)
    assert torch.equal(twin(input_ids, use_cache=False).logits, expected)
    assert torch.equal(model(input_ids, use_cache=False).logits, bounded)
