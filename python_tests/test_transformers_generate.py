"""A model that is taken over under ``generate()``: the same tokens, and each call's own bound."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from architectures import CASES, build
from capmoe_kernels import Capacity
from capmoe_kernels.integrations.transformers import apply, capacity_scope, recording, undo
from tiny_model import EXPERTS, LAYERS, TOP_K, tiny_model

NEW = 6
HALF = Capacity(factor=0.5)
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return tiny_model(pad_token_id=0)


@pytest.fixture(autouse=True)
def _given_back(model):
    yield
    undo(model)


@pytest.fixture(scope="module")
def inputs():
    """Three prompts of 24 tokens, the first with 9 of padding on its left."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 24, dtype=torch.long)
    mask[0, :9] = 0
    return {
        "input_ids": torch.randint(1, 256, (3, 24), generator=generator) * mask,
        "attention_mask": mask,
    }


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 7},
    "no cache": {"use_cache": False},
}


def tokens(model, inputs, **options):
    torch.manual_seed(0)
    return model.generate(**inputs, **(GREEDY | options))


@pytest.mark.parametrize("way", WAYS)
def test_dropless_generates_what_transformers_does(model, inputs, way):
    expected = tokens(model, inputs, **WAYS[way])
    assert torch.equal(tokens(apply(model), inputs, **WAYS[way]), expected)


def bound_of_each_call(model, inputs, **options):
    """(real tokens, most tokens of an expert) of every call, seen in the first block."""
    with recording(model) as records:
        out = tokens(model, inputs, **options)
    first = [each for each in records if each.layer == 0]
    return out, [(each.num_tokens, int(each.tokens_per_expert.max())) for each in first]


def limit(num_tokens):
    return cm.expert_capacity(num_tokens, EXPERTS, TOP_K, 0.5)


@pytest.mark.parametrize("way", ["greedy", "beams", "static cache"])
def test_prefill_is_bounded_by_its_real_tokens_and_decoding_is_not(model, inputs, way):
    apply(model, capacity=HALF)
    _, calls = bound_of_each_call(model, inputs, **WAYS[way])
    beams = WAYS[way].get("num_beams", 1)
    (prefilled, most), *decoded = calls
    assert (prefilled, most) == (63 * beams, limit(63 * beams))
    assert [each for each, _ in decoded] == [3 * beams] * (NEW - 1)
    assert max(most for _, most in decoded) > limit(3 * beams)


def test_without_a_cache_every_step_is_bounded_as_prefill(model, inputs):
    apply(model, capacity=HALF)
    _, calls = bound_of_each_call(model, inputs, use_cache=False)
    assert [each for each, _ in calls] == [63 + 3 * step for step in range(NEW)]
    assert all(most <= limit(each) for each, most in calls)


def test_a_static_cache_of_sliding_layers_only_is_refused_under_a_bound(inputs):
    case = next(case for case in CASES if case.model_type == "mixtral")
    model = apply(build(case, sliding_window=8, vocab_size=256), capacity=HALF)
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, S\] where a capacity"):
        tokens(model, inputs, cache_implementation="static", pad_token_id=0)
    with capacity_scope(model):
        tokens(model, inputs, cache_implementation="static", pad_token_id=0)


def test_a_static_cache_changes_nothing_under_a_bound(model, inputs):
    apply(model, capacity=HALF)
    expected = tokens(model, inputs)
    assert torch.equal(tokens(model, inputs, cache_implementation="static"), expected)
    with capacity_scope(model):
        assert not torch.equal(tokens(model, inputs), expected)


def test_every_chunk_of_a_prefill_is_bounded_by_itself(model, inputs):
    apply(model, capacity=HALF)
    for cache in ("dynamic", "static"):
        options = {"prefill_chunk_size": 7, "cache_implementation": cache}
        _, calls = bound_of_each_call(model, inputs, **options)
        # Of the first prompt 0, 5, 7 and 3 tokens are real.
        real = [14, 19, 21, 9]
        assert [each for each, _ in calls[:4]] == real
        assert all(most <= limit(n) for n, most in calls[:4])
        assert len(calls) == 4 + NEW - 1


def test_a_prompt_of_one_token_is_decoded(model):
    apply(model, capacity=Capacity(limit=0))
    ids = torch.tensor([[5], [9]])
    expected = tokens(undo(model), {"input_ids": ids})
    apply(model, capacity=Capacity(limit=0))
    assert torch.equal(tokens(model, {"input_ids": ids}), expected)


@pytest.fixture(scope="module")
def guesses():
    """Two ways to guess three tokens at a time, which the model checks in one call."""
    helper = tiny_model(pad_token_id=0, num_hidden_layers=1)
    helper.generation_config.num_assistant_tokens = 3
    helper.generation_config.num_assistant_tokens_schedule = "constant"
    return {"assistant_model": helper}, {"prompt_lookup_num_tokens": 3}


def test_speculative_decoding_dropless_is_greedy_decoding(model, inputs, guesses):
    one = {name: value[1:2] for name, value in inputs.items()}
    expected = tokens(model, one)
    apply(model)
    assert all(torch.equal(tokens(model, one, **options), expected) for options in guesses)


def test_checks_of_speculative_decoding_are_decoding_where_that_is_said(model, inputs, guesses):
    one = {name: value[1:2] for name, value in inputs.items()}
    for decode_tokens, dropless in ((1, False), (4, True)):
        apply(model, capacity=Capacity(limit=1), decode_tokens=decode_tokens)
        _, (first, *checks) = bound_of_each_call(model, one, **guesses[0])
        assert first[0] > 24  # the prompt, with the first guesses behind it
        assert first[1] == 1
        assert max(each for each, _ in checks) > 1
        assert (max(most for _, most in checks) > 1) == dropless
    with pytest.raises(ValueError, match="decode_tokens must be >= 1"):
        apply(model, decode_tokens=0)


def test_a_mask_longer_than_what_was_seen_is_read_where_the_call_is(model, inputs):
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=40)
    whole = torch.ones(3, 40, dtype=torch.long)
    whole[:, :24] = inputs["attention_mask"]
    whole[:, 24:] = 0  # what is not yet there
    apply(model, capacity=HALF)
    with recording(model) as records:
        for part in inputs["input_ids"].split([14, 10], dim=1):
            model(part, attention_mask=whole, past_key_values=cache)
    assert [each.num_tokens for each in records[::LAYERS]] == [2 * 14 + 5, 30]
