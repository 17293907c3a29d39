"""Taking over a model's MoE blocks: the same numbers, the bound of each rank, the way back."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import capmoe_kernels as cm
from capmoe_kernels import Capacity
from capmoe_kernels.integrations import blocks, olmoe
from capmoe_kernels.integrations.transformers import (
    apply,
    find_moe_blocks,
    real_tokens,
    recording,
    supported,
    undo,
    watch,
)
from tiny_model import EXPERTS, LAYERS, TOP_K, logits_of, tiny_model, token_ids


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def input_ids():
    return token_ids()


def attributes_of(model):
    return {name: set(vars(module)) for name, module in model.named_modules()}


def hooks_of(model):
    """All kinds: of forward, of load_state_dict, of state_dict, and whichever else there are."""
    return {
        (name, kind): list(held.values())
        for name, module in model.named_modules()
        for kind, held in vars(module).items()
        if kind.endswith("hooks")
    }


@pytest.mark.parametrize("norm_topk_prob", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 4])
def test_dropless_equals_transformers(input_ids, norm_topk_prob, num_ranks):
    model = tiny_model(norm_topk_prob=norm_topk_prob)
    expected = logits_of(model, input_ids)
    for capacity in (None, Capacity(factor=EXPERTS)):
        apply(model, capacity=capacity, num_ranks=num_ranks)
        torch.testing.assert_close(logits_of(model, input_ids), expected, atol=2e-5, rtol=1e-5)


def test_dropless_equals_transformers_in_bfloat16(input_ids):
    model = tiny_model(torch.bfloat16)
    expected = logits_of(model, input_ids).float()
    error = (logits_of(apply(model), input_ids).float() - expected).abs()
    # Router logits tie in 16 bits, and a tie may send a token elsewhere: rare, so judge the bulk.
    assert error.quantile(0.9) < 0.05 * expected.std()


def test_undo_gives_back_every_bit(input_ids):
    model = tiny_model()
    before = logits_of(model, input_ids)
    attributes, hooks = attributes_of(model), hooks_of(model)
    assert apply(model, capacity=Capacity(factor=0.5)) is model
    assert not torch.equal(logits_of(model, input_ids), before)
    assert undo(model) is model
    undo(model)
    assert torch.equal(logits_of(model, input_ids), before)
    assert attributes_of(model) == attributes
    assert hooks_of(model) == hooks


def test_watch_runs_and_keeps_a_forward_that_was_already_replaced(input_ids):
    model = tiny_model()
    block = model.model.layers[0].mlp
    block.forward = mine = torch.zeros_like
    expected = logits_of(model, input_ids)
    with watch(model):
        assert torch.equal(logits_of(model, input_ids), expected)
    assert block.forward is mine


def test_a_later_apply_stands_alone(input_ids):
    model = tiny_model()
    expected = logits_of(model, input_ids)
    apply(model, capacity=Capacity(factor=0.5))
    apply(model)
    torch.testing.assert_close(logits_of(model, input_ids), expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(logits_of(undo(model), input_ids), expected)


def test_undo_under_another_replacement_is_refused_and_changes_nothing(input_ids):
    model = apply(tiny_model(), capacity=Capacity(factor=0.5))
    bounded = logits_of(model, input_ids)
    block = model.model.layers[1].mlp
    ours, block.forward = block.forward, torch.zeros_like
    with pytest.raises(RuntimeError, match="OlmoeSparseMoeBlock was replaced again"):
        undo(model)
    block.forward = ours
    assert torch.equal(logits_of(model, input_ids), bounded)
    undo(model)


def test_watch_changes_nothing_and_takes_time(input_ids):
    model = tiny_model()
    before, hooks = logits_of(model, input_ids), hooks_of(model)
    with watch(model) as records:
        assert torch.equal(logits_of(model, input_ids), before)
    assert hooks_of(model) == hooks
    assert [record.layer for record in records] == list(range(LAYERS))
    assert all(record.seconds > 0 and record.num_tokens == 150 for record in records)
    with pytest.raises(RuntimeError, match="undo"), watch(apply(model)):
        pass


def test_padding_is_neither_counted_nor_felt(input_ids):
    model = apply(tiny_model(), capacity=Capacity(factor=0.75, policy="keep_first"))
    with recording(model) as records:
        alone = logits_of(model, input_ids[:, :30])
        counted = [record.tokens_per_expert for record in records]
        records.clear()
        with real_tokens(model, torch.arange(50).expand(3, 50) < 30):
            padded = logits_of(model, input_ids)[:, :30]
    torch.testing.assert_close(padded, alone, atol=2e-5, rtol=1e-5)
    for record, expected in zip(records, counted, strict=True):
        assert record.num_tokens == 90
        assert torch.equal(record.tokens_per_expert, expected)


def test_records_say_what_the_router_asked_for(input_ids):
    model = tiny_model()
    asked = []
    gate = model.model.layers[0].mlp.gate
    handle = gate.register_forward_hook(lambda _m, _i, out: asked.append(out[2]))
    logits_of(model, input_ids)
    handle.remove()
    with recording(apply(model, capacity=Capacity(factor=1.0))) as records:
        logits_of(model, input_ids)
    demand = torch.bincount(asked[0].flatten(), minlength=EXPERTS)
    assert torch.equal(records[0].demand_per_expert, demand)
    limit = cm.expert_capacity(150, EXPERTS, TOP_K, 1.0)
    assert torch.equal(records[0].tokens_per_expert, demand.clamp(max=limit))


def test_unknown_architecture_is_named_with_those_known():
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(ValueError, match=f"'llama'.*{', '.join(supported())}"):
        apply(LlamaForCausalLM(config))


def test_olmoe_without_its_blocks_is_refused():
    model = tiny_model()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="no OlmoeSparseMoeBlock"):
        find_moe_blocks(model)


def test_ranks_must_divide_the_experts():
    with pytest.raises(ValueError, match="3 devices for 8 experts"):
        apply(tiny_model(), num_ranks=3)


def test_router_logits_cannot_be_asked_for():
    model = tiny_model()
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match="output_router_logits"):
        apply(model)


def test_another_architecture_is_one_registration(input_ids, monkeypatch):
    monkeypatch.setattr(blocks, "_ARCHITECTURES", dict(blocks._ARCHITECTURES))
    model = tiny_model()
    model.config.model_type = "mine"
    blocks.register(blocks.Architecture("mine", "OlmoeSparseMoeBlock", olmoe.read))
    expected = logits_of(model, input_ids)
    assert len(find_moe_blocks(model)) == LAYERS
    apply(model)
    torch.testing.assert_close(logits_of(model, input_ids), expected, atol=2e-5, rtol=1e-5)


def test_a_seed_near_the_end_wraps_and_nothing_is_left_behind(input_ids):
    model = tiny_model()
    expected = logits_of(model, input_ids)
    capacity = Capacity(factor=0.5, policy="random", seed=2**63 - 1)
    logits_of(apply(model, capacity=capacity, num_ranks=2), input_ids)
    undo(model)
    assert torch.equal(logits_of(model, input_ids), expected)
    with pytest.raises(ValueError, match="devices"):
        apply(model, capacity=Capacity(factor=0.5), num_ranks=3)
    assert not any("forward" in vars(block.module) for block in find_moe_blocks(model))


def test_a_block_taken_over_compiles_whole():
    model = apply(tiny_model(), capacity=Capacity(factor=1.0))
    hidden = torch.randn(2, 9, model.config.hidden_size)
    block = find_moe_blocks(model)[0].module
    expected = block(hidden)
    compiled = torch.compile(block.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), expected)
