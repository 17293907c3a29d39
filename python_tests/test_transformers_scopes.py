"""Which capacity bounds which call: prefill, decoding, scopes, one per block, padding."""

from __future__ import annotations

import json

import pytest
import torch

import capmoe_kernels as cm
from architecture_oracle import first
from architectures import CASES, build
from capmoe_kernels import Capacity
from capmoe_kernels.integrations.attention_masks import from_causal, of_this_call, past_length
from capmoe_kernels.integrations.capacity_file import read_capacities, write_capacities
from capmoe_kernels.integrations.transformers import (
    apply,
    capacity_scope,
    find_moe_blocks,
    real_tokens,
    recording,
    undo,
    watch,
)
from tiny_model import EXPERTS, LAYERS, TOP_K, tiny_model

HALF = Capacity(factor=0.5)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def input_ids():
    return torch.randint(0, 256, (3, 50), generator=torch.Generator().manual_seed(1))


def loads(model, input_ids, **inputs):
    """[layers, E]: pairs kept in one call."""
    with recording(model) as records:
        model(input_ids, use_cache=False, **inputs)
    return torch.stack([record.tokens_per_expert for record in records])


def limit(num_tokens, factor):
    return cm.expert_capacity(num_tokens, EXPERTS, TOP_K, factor)


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
    assert all(each <= EXPERTS * limit(150, 0.5) for each in kept[:LAYERS])
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


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_an_attention_mask_does_not_compete(input_ids, side):
    mask = torch.ones(3, 50, dtype=torch.long)
    mask[1, slice(0, 20) if side == "left" else slice(30, 50)] = 0
    model = apply(tiny_model(), capacity=HALF)
    with recording(model) as records:
        model(input_ids, attention_mask=mask, use_cache=False)
        model(input_ids, attention_mask=torch.ones_like(mask), use_cache=False)
    assert [record.num_tokens for record in records] == [130] * LAYERS + [150] * LAYERS
    assert records[0].tokens_per_expert.max() == limit(130, 0.5)
    assert records[LAYERS].tokens_per_expert.max() == limit(150, 0.5)


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
    assert records[0].tokens_per_expert.max() == limit(110, 0.5)
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


def test_watch_with_padding_sees_real_tokens_only(input_ids):
    mask = torch.ones(3, 50, dtype=torch.bool)
    mask[0, 40:] = False
    model = tiny_model()
    expected = model(input_ids, use_cache=False).logits[mask]
    with watch(model) as records, real_tokens(model, mask):
        got = model(input_ids, use_cache=False).logits[mask]
    assert [record.num_tokens for record in records] == [140] * LAYERS
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
