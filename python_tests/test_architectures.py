"""Every known architecture: without capacity its own numbers, with capacity the oracle's."""

from __future__ import annotations

import copy

import pytest
import torch

from architecture_oracle import first, tokens_of, truth_and_same_dtype, without_ties
from architectures import CASES, blocks_of, build
from capmoe_kernels import Capacity
from capmoe_kernels.integrations.transformers import (
    apply,
    capacity_scope,
    find_moe_blocks,
    recording,
    supported,
    undo,
)
from checks import assert_close_to_truth

CAPACITIES = {
    "drop": Capacity(factor=0.75),
    "local": Capacity(factor=1.0, expand="local", local_experts=(2, 5)),
    "rank": Capacity(factor=1.25, expand="rank", extra=1),
}


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def test_every_known_architecture_has_a_case():
    assert sorted({case.model_type for case in CASES}) == supported()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dropless_equals_the_original_block(case, dtype):
    model = build(case, dtype)
    block = blocks_of(model)[-1]
    hidden = tokens_of(dtype)
    tokens = hidden.flatten(0, 1)
    truth, _ = truth_and_same_dtype(case, block, tokens)
    clear = without_ties(case, block, tokens)
    assert clear.sum() > 40
    theirs = block(hidden)
    # Their own error is a rounding or two: then twice that is no room for another formula.
    own_error = (first(theirs).flatten(0, 1).double() - truth)[clear].abs().max()
    assert own_error < 8 * torch.finfo(dtype).eps * truth.abs().max()
    apply(model)
    ours = block(hidden)
    assert_close_to_truth(
        first(ours).flatten(0, 1)[clear], truth[clear], first(theirs).flatten(0, 1)[clear]
    )
    check_rest(ours, theirs)


def check_rest(ours, theirs):
    """Whatever a block returns beside its hidden states."""
    assert type(ours) is type(theirs)
    if isinstance(ours, tuple):
        assert len(ours) == len(theirs) == 2
        torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_model_gives_the_same_logits(case):
    input_ids = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    for seed in (1, 2):
        model = build(case, seed=seed)
        expected = model(input_ids, use_cache=False).logits
        assert len(find_moe_blocks(model)) == case.blocks
        got = apply(model)(input_ids, use_cache=False).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
        with recording(model) as records:
            stepwise = model(input_ids, use_cache=False).logits
        torch.testing.assert_close(stepwise, got, rtol=1e-4, atol=1e-4 * float(expected.std()))
        top_k = case.gating.top_k
        assert [int(r.demand_per_expert.sum()) for r in records] == [40 * top_k] * case.blocks


@pytest.mark.parametrize("case", CASES, ids=str)
def test_with_capacity_it_equals_the_oracle(case):
    model = apply(build(case, seed=3))
    block = blocks_of(model)[-1]
    hidden = tokens_of(torch.float32, seed=3)
    tokens = hidden.flatten(0, 1)
    dropless = first(block(hidden))
    for capacity in CAPACITIES.values():
        truth, same = truth_and_same_dtype(case, block, tokens, capacity)
        with capacity_scope(model, capacity):
            ours = first(block(hidden))
        assert not torch.equal(ours, dropless)
        assert_close_to_truth(ours.flatten(0, 1), truth, same)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_undo_gives_back_every_bit(case):
    model = build(case, seed=4)
    hidden = tokens_of(torch.float32)
    block = blocks_of(model)[-1]
    before = block(hidden)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    identities = {name: id(p) for name, p in model.named_parameters()}
    values = {name: p.clone() for name, p in model.state_dict().items()}
    apply(model, capacity=Capacity(factor=0.5))
    assert not torch.equal(first(block(hidden)), first(before))
    undo(model)
    for got, expected in zip(as_tuple(block(hidden)), as_tuple(before), strict=True):
        assert torch.equal(got, expected)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert {name: id(p) for name, p in model.named_parameters()} == identities
    assert all(torch.equal(p, values[name]) for name, p in model.state_dict().items())


def as_tuple(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_copy_of_a_model_has_a_router_of_its_own(case):
    with torch.enable_grad():  # as in a notebook
        model = apply(build(case, seed=6))
        twin = copy.deepcopy(model)
    hidden = tokens_of(torch.float32)
    expected = first(blocks_of(model)[-1](hidden))
    block = blocks_of(twin)[-1]
    assert torch.equal(first(block(hidden)), expected)
    for module in (getattr(block, "gate", None) or block.router, *shared_of(case, block)):
        for tensor in module.parameters():
            tensor.neg_()
    ours = first(block(hidden))
    undo(twin)
    torch.testing.assert_close(ours, first(block(hidden)), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(ours, expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(first(blocks_of(model)[-1](hidden)), expected)


def shared_of(case, block):
    return [getattr(block, case.shared)] if case.shared else []


# The kernels' layout of GPT-OSS's experts is a copy.
SHARED = [case for case in CASES if case.layout == "concat"]


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_a_change_in_place_reaches_the_kernels(case):
    model = build(case, seed=5)
    hidden = tokens_of(torch.float32)
    apply(model)
    blocks = blocks_of(model)
    for tensor in blocks[-1].experts.parameters():
        tensor.mul_(1.5)
    ours = first(blocks[-1](hidden))
    undo(model)
    torch.testing.assert_close(ours, first(blocks[-1](hidden)), rtol=1e-4, atol=1e-3)
