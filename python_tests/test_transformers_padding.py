"""Which tokens of a call are real: masks of every kind, padding, and what it gets."""

from __future__ import annotations

import pytest
import torch

from architecture_oracle import first
from architectures import CASES, build
from capmoe_kernels import Capacity
from capmoe_kernels.integrations.attention_masks import from_causal, of_this_call, past_length
from capmoe_kernels.integrations.transformers import (
    apply,
    capacity_scope,
    find_moe_blocks,
    real_tokens,
    recording,
    watch,
)
from tiny_model import LAYERS, tiny_model, token_ids, tokens_limit

HALF = Capacity(factor=0.5)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def input_ids():
    return token_ids()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_an_attention_mask_does_not_compete(input_ids, side):
    mask = torch.ones(3, 50, dtype=torch.long)
    mask[1, slice(0, 20) if side == "left" else slice(30, 50)] = 0
    model = apply(tiny_model(), capacity=HALF)
    with recording(model) as records:
        model(input_ids, attention_mask=mask, use_cache=False)
        model(input_ids, attention_mask=torch.ones_like(mask), use_cache=False)
    assert [record.num_tokens for record in records] == [130] * LAYERS + [150] * LAYERS
    assert records[0].tokens_per_expert.max() == tokens_limit(130, 0.5)
    assert records[LAYERS].tokens_per_expert.max() == tokens_limit(150, 0.5)


def test_a_mask_of_real_tokens_is_for_calls_of_its_very_shape(input_ids):
    model = apply(tiny_model(), capacity=HALF)
    mask = torch.ones(3, 50, dtype=torch.bool)
    wrong = pytest.raises(
        ValueError, match=r"one entry for each of the \[5, 30\] tokens.*\[3, 50\]"
    )
    with real_tokens(model, mask), wrong:
        model(input_ids.reshape(5, 30), use_cache=False)


@pytest.mark.parametrize("model_type", ["qwen2_moe", "deepseek_v3"])
def test_padding_gets_0_with_shared_experts_too_recorded_or_not(model_type):
    model = build(next(case for case in CASES if case.model_type == model_type))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :7] = False
    ids = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(2))
    outputs = []
    for block in find_moe_blocks(model):
        block.module.register_forward_hook(lambda _m, _i, out: outputs.append(first(out)))
    for capacity in (None, HALF):
        outputs.clear()
        apply(model, capacity=capacity)
        model(ids, attention_mask=mask, use_cache=False)
        with recording(model):
            model(ids, attention_mask=mask, use_cache=False)
        half = len(outputs) // 2
        for fused, stepwise in zip(outputs[:half], outputs[half:], strict=True):
            assert (fused[~mask] == 0).all()
            assert (fused[mask] != 0).any(1).all()
            torch.testing.assert_close(stepwise, fused, atol=2e-5, rtol=1e-4)


def test_fused_and_recorded_calls_agree_under_padding(input_ids):
    mask = torch.ones(3, 50, dtype=torch.bool)
    mask[2, :11] = False
    model = apply(tiny_model(), capacity=HALF)
    fused = model(input_ids, attention_mask=mask, use_cache=False).logits[mask]
    with recording(model):
        stepwise = model(input_ids, attention_mask=mask, use_cache=False).logits[mask]
    torch.testing.assert_close(fused, stepwise, atol=2e-5, rtol=1e-5)


def test_generate_with_left_padding_equals_each_prompt_alone(input_ids):
    model = apply(tiny_model(pad_token_id=0), capacity=None)
    ids, mask = input_ids.clone(), torch.ones(3, 50, dtype=torch.long)
    mask[0, :13] = 0
    together = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    alone = model.generate(ids[:1, 13:], max_new_tokens=5, do_sample=False)
    assert torch.equal(together[0, 50:55], alone[0, 37:42])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_causal_mask_says_which_tokens_are_real(input_ids, dtype):
    real = torch.ones(3, 50, dtype=torch.bool)
    real[0, :20], real[1, 30:] = False, False
    full = torch.ones(50, 50, dtype=torch.bool).tril() & real[:, None, None]
    if dtype != torch.bool:
        full = torch.where(full, 0.0, torch.finfo(dtype).min)
    model = apply(tiny_model(), capacity=HALF)
    with recording(model) as records:
        model(input_ids, attention_mask=full, use_cache=False)
    assert records[0].num_tokens == 110
    assert records[0].tokens_per_expert.max() == tokens_limit(110, 0.5)
    # Models with several kinds of attention get a dict; with a cache a mask covers the past, too.
    both = {"full_attention": full, "sliding_attention": None}
    assert torch.equal(from_causal(both, 50, 0), real)
    assert torch.equal(from_causal(full[:, :, 40:], 10, torch.tensor(40)), real[:, 40:])


def test_positions_say_where_in_a_mask_a_call_is():
    """Transformers 4 hands them down; its static caches don't know how much they hold."""
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[0, :20], mask[:, 24:] = 0, 0
    positions = torch.arange(14, 24)
    assert torch.equal(of_this_call(mask, 10, None, positions), mask[:, 14:24].bool())
    assert past_length(None, positions) == 14


@pytest.mark.parametrize("capacity", [None, HALF], ids=["dropless", "bounded"])
def test_a_mask_longer_than_the_call_is_read_from_its_start(input_ids, capacity):
    mask = torch.ones(3, 50, dtype=torch.long)
    mask[0, :13] = 0
    long = torch.cat([mask, torch.zeros_like(mask)], 1)
    model = apply(tiny_model(), capacity=capacity)
    expected = model(input_ids, attention_mask=mask).logits
    got = model(input_ids, attention_mask=long).logits
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


def test_before_a_cache_could_say_its_length_a_mask_ended_with_the_call():
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[0, :20] = 0
    assert torch.equal(of_this_call(mask, 30, ((),), None), mask[:, 10:].bool())


def test_a_mask_that_hides_padding_is_refused_under_a_bound(input_ids):
    model = apply(tiny_model(), capacity=HALF)
    prefix = torch.ones(3, 1, 50, 50, dtype=torch.bool).tril()
    prefix[:, :, :10, :10] = True  # these see each other
    itself = torch.ones_like(prefix).tril() & (torch.arange(50) > 9)
    itself |= torch.eye(50, dtype=torch.bool)  # padding that sees itself
    biased = torch.where(prefix.tril(), 0.0, -1.0)
    for mask in (prefix, itself, biased, prefix.tril()[..., :1].expand(3, 1, 50, 50)):
        with pytest.raises(ValueError, match=r"attention_mask must be \[B, S\].*\[3, 1, 50, 50\]"):
            model(input_ids, attention_mask=mask, use_cache=False)
        with real_tokens(model, torch.ones(3, 50, dtype=torch.bool)):
            model(input_ids, attention_mask=mask, use_cache=False)
        with capacity_scope(model):
            model(input_ids, attention_mask=mask, use_cache=False)
    with pytest.raises(ValueError, match="one entry for each"), real_tokens(model, prefix[0, 0]):
        model(input_ids, use_cache=False)


def test_watch_with_padding_sees_real_tokens_only(input_ids):
    mask = torch.ones(3, 50, dtype=torch.bool)
    mask[0, 40:] = False
    model = tiny_model()
    expected = model(input_ids, use_cache=False).logits[mask]
    with watch(model) as records, real_tokens(model, mask):
        got = model(input_ids, use_cache=False).logits[mask]
    assert [record.num_tokens for record in records] == [140] * LAYERS
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
