"""``torch.compile`` of whole models that are taken over: one graph, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from capmoe_kernels import Capacity
from capmoe_kernels.integrations.transformers import (
    apply,
    capacity_scope,
    register_experts_implementation,
)
from tiny_model import tiny_model

HALF = Capacity(factor=0.5)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _no_grad():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def compiled(model, backend):
    """The whole model as one graph, and what counts how often it is compiled."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, fullgraph=True, dynamic=True, backend=counter), counter


def batch(length):
    """Three sequences, each with padding on its left where there is room for it."""
    ids = torch.randint(0, 256, (3, length), generator=torch.Generator().manual_seed(length))
    return ids, torch.arange(length) >= torch.tensor([[0], [length // 3], [length // 2]])


def compilations(model):
    """Of prefills of several lengths with a 2-D mask, then of one of one token."""
    whole, counter = compiled(model, "aot_eager")
    seen = []
    for length in (20, 31, 7, 40, 1):
        ids, mask = batch(length)
        got = whole(ids, attention_mask=mask, use_cache=False).logits
        expected = model(ids, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(got[mask], expected[mask], **CLOSE)
        seen.append(counter.frame_count)
    return seen


def test_a_whole_model_is_compiled_as_often_as_without_us():
    unpatched = compilations(tiny_model(num_hidden_layers=1))
    bounded = compilations(apply(tiny_model(num_hidden_layers=1), capacity=HALF))
    assert bounded == unpatched
    assert len(set(bounded[:4])) == 1


def test_decoding_with_a_cache_is_compiled_a_bounded_number_of_times():
    model = apply(tiny_model(num_hidden_layers=1), capacity=HALF)
    whole, counter = compiled(model, "eager")
    ids, mask = batch(16)
    theirs, ours = (model(ids, attention_mask=mask, use_cache=True) for _ in range(2))
    seen = []
    for step in range(5):
        more = torch.ones(3, step + 1, dtype=torch.bool)
        inputs = {"input_ids": ids[:, :1] + step, "attention_mask": torch.cat([mask, more], 1)}
        theirs = model(**inputs, past_key_values=theirs.past_key_values)
        ours = whole(**inputs, past_key_values=ours.past_key_values)
        torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
        seen.append(counter.frame_count)
    assert seen[1] == seen[-1] <= 3


def test_scopes_and_new_weights_reach_a_compiled_model():
    model = apply(tiny_model(num_hidden_layers=1), capacity=HALF)
    whole, counter = compiled(model, "eager")
    ids, mask = batch(20)

    def agree():
        got, expected = (
            m(ids, attention_mask=mask, use_cache=False).logits for m in (whole, model)
        )
        torch.testing.assert_close(got[mask], expected[mask], **CLOSE)
        return got

    bounded = agree()
    with capacity_scope(model):
        assert not torch.equal(agree(), bounded)
    with capacity_scope(model, Capacity(limit=1)):
        assert not torch.equal(agree(), bounded)
    before = counter.frame_count
    assert torch.equal(agree(), bounded)
    model.model.layers[0].mlp.experts.down_proj.mul_(2)
    assert not torch.equal(agree(), bounded)
    assert counter.frame_count == before
    model.load_state_dict({k: v / 2 for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(Exception, match=r"has other weights or modules .* call the model once"):
        whole(ids, attention_mask=mask, use_cache=False)
    model(ids, use_cache=False)
    agree()


def test_weights_loaded_into_a_packed_model_are_not_missed_by_its_compiled_code():
    model = apply(tiny_model(num_hidden_layers=1), pack=True)
    whole, _ = compiled(model, "eager")
    ids, _ = batch(9)
    whole(ids, use_cache=False)
    model.load_state_dict({name: weight / 2 for name, weight in model.state_dict().items()})
    with pytest.raises(Exception, match=r"has other weights or modules .* call the model once"):
        whole(ids, use_cache=False)
    expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(whole(ids, use_cache=False).logits, expected, **CLOSE)


def test_a_mask_that_must_be_read_is_refused_in_a_graph():
    model = apply(tiny_model(num_hidden_layers=1), capacity=HALF)
    whole, _ = compiled(model, "eager")
    ids, _ = batch(9)
    full = torch.ones(3, 1, 9, 9, dtype=torch.bool).tril()
    with pytest.raises(Exception, match=r"attention_mask must be \[B, S\]"):
        whole(ids, attention_mask=full, use_cache=False)


def test_the_registry_compiles_after_one_call():
    register_experts_implementation()
    model = tiny_model(num_hidden_layers=1)
    ids, _ = batch(9)
    expected = model(ids, use_cache=False).logits
    model.set_experts_implementation("capmoe")
    whole, _ = compiled(model, "eager")
    with pytest.raises(Exception, match="call the model once before it is compiled"):
        whole(ids, use_cache=False)
    model(ids, use_cache=False)
    torch.testing.assert_close(whole(ids, use_cache=False).logits, expected, **CLOSE)


def test_inductor_compiles_a_bounded_model():
    model = apply(tiny_model(num_hidden_layers=1), capacity=HALF)
    whole, _ = compiled(model, "inductor")
    ids, mask = batch(20)
    got = whole(ids, attention_mask=mask, use_cache=False).logits
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(got[mask], expected[mask], **CLOSE)
