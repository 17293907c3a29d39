"""Items 10 to 17 of section 3.1 as properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import capmoe_kernels as cm
import oracle
from cases import make_experts, normal, router_logits
from checks import assert_routing, expected_route, kept_pairs
from test_invariants import FACTORS, POLICIES, SEEDS, layers, load_of, scores_of, topk_pairs


@given(layer=layers(), factor=FACTORS, devices=st.sampled_from([1, 2, 4]))
def test_item_10_device_level(backend, layer, factor, devices):
    logits, top_k = layer
    tokens, experts = logits.shape
    assume(experts % devices == 0)
    own = experts // devices
    bound = min(oracle.share(tokens, experts, top_k, factor), tokens)
    gating = cm.Gating(top_k)
    plain = cm.route(logits, gating, cm.Capacity(factor))
    device = cm.route(logits, gating, cm.Capacity(factor, scope="device", experts_per_device=own))
    score = scores_of(backend, logits, top_k)
    loads = device.tokens_per_expert.view(devices, own).sum(1).tolist()
    demand = device.demand_per_expert.view(devices, own).sum(1).tolist()
    assert loads == [min(n, own * bound) for n in demand]
    assert sum(loads) >= sum(load_of(plain))
    total = [sum(score[p] for p in kept_pairs(r)) for r in (device, plain)]
    assert total[0] >= total[1] * (1 - 1e-12)
    if max(demand) <= own * bound:
        assert kept_pairs(device) == topk_pairs(logits, top_k)
    if own == 1:
        assert kept_pairs(device) == kept_pairs(plain)


@given(layer=layers(), ranks=st.sampled_from([1, 2, 4]), policy=POLICIES)
def test_item_11_capacity_per_source_rank(backend, layer, ranks, policy):
    logits, top_k = layer
    share = len(logits) // ranks
    parts = logits[: share * ranks].split(share) if share else []
    capacity = cm.Capacity(1.0, policy=policy)
    total = torch.zeros(logits.shape[1], dtype=torch.int64)
    for part in parts:
        total += cm.route(part, cm.Gating(top_k), capacity).tokens_per_expert
    bound = min(oracle.share(share, logits.shape[1], top_k, 1.0), share)
    assert total.max().item() <= ranks * bound


def test_item_11_is_not_global_capacity(backend):
    """Rank 0 wants expert 0 only, rank 1 expert 1 only: 2 * 2 places per rank, 4 over both."""
    logits = torch.tensor([[2.0, 0.0]] * 4 + [[0.0, 2.0]] * 4)
    whole = cm.route(logits, cm.Gating(1), cm.Capacity(1.0))
    halves = [cm.route(half, cm.Gating(1), cm.Capacity(1.0)) for half in logits.split(4)]
    assert whole.tokens_per_expert.tolist() == [4, 4]
    assert [half.tokens_per_expert.tolist() for half in halves] == [[2, 0], [0, 2]]


@given(layer=layers(), factor=FACTORS, scaling=st.sampled_from([1.0, 2.5, 16.0]))
def test_item_12_weights(backend, layer, factor, scaling):
    logits, top_k = layer
    score = scores_of(backend, logits, top_k)
    routed = {
        name: cm.route(
            logits, cm.Gating(top_k, renormalize=name, scaling=scaling), cm.Capacity(factor)
        )
        for name in ["none", "topk", "kept"]
    }
    none, topk, kept = (
        routed[name].weights.double() / scaling for name in ["none", "topk", "kept"]
    )
    assert len({r.rows.numpy().tobytes() for r in routed.values()}) == 1
    ulp = 1 + 1e-6
    assert (none <= topk * ulp).all()
    assert (topk <= kept * ulp).all()
    assert (topk.sum(1) <= ulp).all()
    any_kept = (routed["kept"].rows >= 0).any(1)
    torch.testing.assert_close(kept.sum(1), any_kept.double(), rtol=1e-6, atol=0)
    baseline = cm.route(logits, cm.Gating(top_k, renormalize="topk", scaling=scaling)).weights
    survived = routed["topk"].rows >= 0
    assert routed["topk"].weights[survived].equal(baseline[survived])
    for t, e in kept_pairs(routed["none"]):
        column = routed["none"].expert_ids[t].tolist().index(e)
        assert none[t, column].item() == pytest.approx(score[t, e], rel=2e-7)


@given(
    layer=layers(),
    factor=FACTORS,
    extra=st.sampled_from([1, 4]),
    scaling=st.sampled_from([1.0, 2.5]),
)
def test_item_12_kept_sums_to_the_scaling_with_extras(backend, layer, factor, extra, scaling):
    logits, top_k = layer
    gating = cm.Gating(top_k, renormalize="kept", scaling=scaling)
    routing = cm.route(logits, gating, cm.Capacity(factor, expand="rank", extra=extra))
    expected = (routing.rows >= 0).any(1).double() * scaling
    torch.testing.assert_close(routing.weights.double().sum(1), expected, rtol=1e-6, atol=0)


@given(layer=layers(), factor=FACTORS, policy=POLICIES, pads=st.sampled_from([0, 1, 5, 33]))
def test_item_13_pads_at_the_end(backend, layer, factor, policy, pads):
    """Neither what is in the padding nor how much of it there is changes a real token."""
    logits, top_k = layer
    tokens, experts = logits.shape
    gating, capacity = cm.Gating(top_k, renormalize="kept"), cm.Capacity(factor, policy=policy)
    alone = cm.route(logits, gating, capacity)
    mask = torch.arange(tokens + pads) < tokens
    for filling in [0.0, 50.0, math.nan, math.inf]:
        padded = torch.cat([logits, torch.full((pads, experts), filling)])
        routing = cm.route(padded, gating, capacity, token_mask=mask)
        assert routing.expert_ids[:tokens].equal(alone.expert_ids)
        assert routing.weights[:tokens].equal(alone.weights)
        assert routing.rows[:tokens].equal(alone.rows)
        assert routing.tokens_per_expert.equal(alone.tokens_per_expert)
        assert routing.demand_per_expert.equal(alone.demand_per_expert)
        assert (routing.rows[tokens:] == -1).all()
        assert (routing.weights[tokens:] == 0).all()


@given(seed=SEEDS, factor=FACTORS, policy=st.sampled_from(["score", "keep_first", "keep_last"]))
def test_item_13_pads_anywhere(backend, seed, factor, policy):
    mask = torch.rand(40, generator=torch.Generator().manual_seed(seed)) < 0.6
    logits = router_logits(40, 8, "levels", seed)
    capacity = cm.Capacity(factor, policy=policy)
    padded = cm.route(logits, cm.Gating(2), capacity, token_mask=mask)
    alone = cm.route(logits[mask], cm.Gating(2), capacity)
    assert padded.expert_ids[mask].equal(alone.expert_ids)
    assert padded.rows[mask].equal(alone.rows)


def test_item_13_pad_outputs_are_zero(backend, poison):
    mask = torch.arange(30) % 3 != 1
    x = normal((30, 16))
    x[~mask] = math.nan
    logits = router_logits(30, 8)
    logits[~mask] = math.nan
    experts = make_experts(8, 16, 8, bias=True)
    gating, capacity = cm.Gating(2), cm.Capacity(1.0)
    out = cm.moe(x, logits, experts, gating, capacity, token_mask=mask)
    assert (out[~mask] == 0).all()
    assert out[mask].isfinite().all()
    alone = cm.moe(x[mask], logits[mask], experts, gating, capacity)
    torch.testing.assert_close(out[mask], alone, rtol=1e-6, atol=1e-6)


@given(layer=layers(), limit=st.sampled_from([0, 1, 3, 20]), more=st.sampled_from([1, 7]))
def test_item_14_keep_first_is_causal(backend, layer, limit, more):
    logits, top_k = layer
    tokens = len(logits)
    longer = torch.cat([logits, router_logits(more, logits.shape[1], "skewed")])
    capacity = cm.Capacity(limit=limit, policy="keep_first")
    short = kept_pairs(cm.route(logits, cm.Gating(top_k), capacity))
    long = kept_pairs(cm.route(longer, cm.Gating(top_k), capacity))
    # C = min(limit, T) can only have been the bound of the shorter call where it bounds nothing.
    assert {pair for pair in long if pair[0] < tokens} == short


def test_item_14_score_is_not_causal(backend):
    """Documented: a later, better token evicts an earlier one."""
    capacity = cm.Capacity(limit=1)
    first = cm.route(torch.tensor([[1.0, 0.0]]), cm.Gating(1), capacity)
    both = cm.route(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), cm.Gating(1), capacity)
    assert kept_pairs(first) == {(0, 0)}
    assert kept_pairs(both) == {(1, 0)}


@given(layer=layers(), factor=FACTORS, policy=POLICIES, every=st.sampled_from([1, 2, 3]))
def test_item_15_image_first(backend, layer, factor, policy, every):
    """Image-First drops images first: an image token stays only where no text was dropped."""
    logits, top_k = layer
    is_text = torch.arange(len(logits)) % every == 0
    capacity = cm.Capacity(factor, policy=policy)
    routing = cm.route(logits, cm.Gating(top_k), capacity, token_priority=is_text.long())
    kept = kept_pairs(routing)
    dropped_text = {e for t, e in topk_pairs(logits, top_k) - kept if is_text[t]}
    assert not {e for t, e in kept if not is_text[t]} & dropped_text
    plain = cm.route(logits, cm.Gating(top_k), capacity)
    for constant in [0, 7, -3]:
        uniform = torch.full((len(logits),), constant)
        same = cm.route(logits, cm.Gating(top_k), capacity, token_priority=uniform)
        assert all(a.equal(b) for a, b in zip(plain, same, strict=True))


@given(layer=layers(sizes=st.sampled_from([0, 1, 2, 17, 40])), factor=FACTORS, policy=POLICIES)
def test_item_16_reroute(backend, layer, factor, policy):
    logits, top_k = layer
    tokens, experts = logits.shape
    bound = min(oracle.share(tokens, experts, top_k, factor), tokens)
    gating = cm.Gating(top_k)
    refused, total = set(), -1
    for rounds in [1, 2, 3, 4]:
        capacity = cm.Capacity(factor, policy=policy, reroute_rounds=rounds)
        routing = cm.route(logits, gating, capacity)
        kept = kept_pairs(routing)
        if rounds == 1:
            assert kept == kept_pairs(cm.route(logits, gating, cm.Capacity(factor, policy=policy)))
        assert max(routing.tokens_per_expert.tolist()) <= bound
        assert len(kept) >= total
        assert not kept & refused
        total = len(kept)
        asked = {
            (t, e) for t, row in enumerate(routing.expert_ids.tolist()) for e in row if e < experts
        }
        refused |= asked - kept
        assert_routing(routing, expected_route(backend, logits, gating, capacity))
        held = [sum(t == u for u, _ in kept) for t in range(tokens)]
        assert max(held, default=0) <= top_k


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_item_17_the_public_functions_refuse(backend, value):
    logits = router_logits(5, 4)
    logits[3, 2] = value
    with pytest.raises(ValueError, match=r"router_logits.*\[3, 2\]"):
        cm.route(logits, cm.Gating(2))
    mask = torch.arange(5) != 3
    cm.route(logits, cm.Gating(2), token_mask=mask)


def test_item_17_minus_inf_is_a_forbidden_expert(backend, poison):
    logits = router_logits(20, 6)
    logits[:, 2] = -math.inf
    logits[4] = -math.inf
    capacity = cm.Capacity(1.0, expand="local", local_experts=(1, 4))
    routing = cm.route(logits, cm.Gating(2, renormalize="kept"), capacity)
    assert routing.tokens_per_expert[2] == 0
    assert routing.demand_per_expert[2] == 0
    assert routing.expert_ids[4].tolist() == [6] * 5
    assert routing.weights.isfinite().all()
    out = cm.moe(normal((20, 8)), logits, make_experts(6, 8, 4, bias=True), cm.Gating(2), capacity)
    assert (out[4] == 0).all()
    assert out.isfinite().all()
