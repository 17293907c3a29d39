"""Items 1 to 9 of section 3.1 as properties; 10 to 17 are in test_invariants_more.py.

18 is in test_slots.py, 19 in test_golden.py and test_capacity.py. Heavy ties, E = 60, T from 0.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import capmoe_kernels as cm
import oracle
from cases import router_logits
from checks import assert_routing, expected_route, kept_pairs

SIZES = st.sampled_from([0, 1, 2, 3, 17, 64, 130, 257])
EXPERTS = st.sampled_from([1, 2, 4, 8, 60])
STYLES = st.sampled_from(["gaussian", "skewed", "levels", "distinct", "one_expert"])
POLICIES = st.sampled_from(["score", "keep_first", "keep_last", "random"])
FACTORS = st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0, 1.3, 2.0, 7.5])
SEEDS = st.integers(0, 2**31)


@st.composite
def layers(draw, styles=STYLES, sizes=SIZES):
    """(logits, top_k): a layer's input."""
    tokens, experts = draw(sizes), draw(EXPERTS)
    top_k = draw(st.integers(1, min(8, experts)))
    return router_logits(tokens, experts, draw(styles), draw(SEEDS)), top_k


def load_of(routing):
    return routing.tokens_per_expert.tolist()


def scores_of(backend, logits, top_k):
    """{(token, expert): float32 score} over all experts, as the backend computes them."""
    ids, _, scores = backend.gate(logits, cm.Gating(logits.shape[1]))
    return {
        (t, e): s
        for t, (row, line) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True))
        for e, s in zip(row, line, strict=True)
    }


def topk_pairs(logits, top_k):
    ids = oracle.gate(logits.tolist(), cm.Gating(top_k)).expert_ids
    return {(t, e) for t, row in enumerate(ids) for e in row}


@given(layer=layers(), policy=POLICIES, factor=FACTORS)
def test_item_01_loads(backend, layer, policy, factor):
    logits, top_k = layer
    tokens, experts = logits.shape
    routing = cm.route(logits, cm.Gating(top_k), cm.Capacity(factor, policy=policy))
    demand = routing.demand_per_expert.tolist()
    bound = min(oracle.share(tokens, experts, top_k, factor), tokens)
    assert sum(demand) == tokens * top_k
    assert load_of(routing) == [min(n, bound) for n in demand]
    excess = sum(max(n - bound, 0) for n in demand)
    assert Fraction(sum(demand) - sum(load_of(routing))) == excess


@given(layer=layers(), factor=FACTORS)
def test_item_02_score_keeps_the_best(backend, layer, factor):
    logits, top_k = layer
    routing = cm.route(logits, cm.Gating(top_k), cm.Capacity(factor))
    score = scores_of(backend, logits, top_k)
    asked, kept = topk_pairs(logits, top_k), kept_pairs(routing)
    for e in range(logits.shape[1]):
        ranked = sorted((-score[p], p[0]) for p in asked if p[1] == e)
        assert {t for _, t in ranked[: load_of(routing)[e]]} == {t for t, x in kept if x == e}


@given(layer=layers(), factor=FACTORS)
def test_item_03_positions(backend, layer, factor):
    logits, top_k = layer
    gating = cm.Gating(top_k)
    last = len(logits) - 1
    first = cm.route(logits, gating, cm.Capacity(factor, policy="keep_first"))
    asked, kept = topk_pairs(logits, top_k), kept_pairs(first)
    for e, load in enumerate(load_of(first)):
        column = sorted(t for t, x in asked if x == e)
        assert {t for t, x in kept if x == e} == set(column[:load])
    backwards = cm.route(logits.flip(0), gating, cm.Capacity(factor, policy="keep_last"))
    assert {(last - t, e) for t, e in kept_pairs(backwards)} == kept_pairs(first)


@given(layer=layers(), factor=FACTORS, seed=st.integers(0, 2**63 - 1))
def test_item_04_random_repeats(backend, layer, factor, seed):
    logits, top_k = layer
    capacity = cm.Capacity(factor, policy="random", seed=seed)
    routing = cm.route(logits, cm.Gating(top_k), capacity)
    assert_routing(routing, expected_route(backend, logits, cm.Gating(top_k), capacity))
    again = cm.route(logits, cm.Gating(top_k), capacity)
    assert all(a.equal(b) for a, b in zip(routing, again, strict=True))


def test_item_04_random_is_fair(backend):
    """Over 800 seeds each of 24 candidates is kept with probability C / N (chi squared)."""
    tokens, limit, seeds = 24, 6, 800
    ids, ones = torch.full((tokens, 1), 2), torch.ones(tokens, 1)
    hits = torch.zeros(tokens)
    for seed in range(seeds):
        routing = cm.select(ids, ones, 3, cm.Capacity(limit=limit, policy="random", seed=seed))
        hits += routing.rows[:, 0] >= 0
    expected = seeds * limit / tokens
    variance = expected * (1 - limit / tokens)
    chi = ((hits - expected) ** 2 / variance).sum().item() * (tokens - 1) / tokens
    assert 7.0 < chi < 50.0, "outside the central 99.9 % of chi squared with 23 degrees"


@given(layer=layers(st.sampled_from(["gaussian", "distinct"])), factor=FACTORS, seed=SEEDS)
def test_item_05_permuting_tokens(backend, layer, factor, seed):
    logits, top_k = layer
    score = scores_of(backend, logits, top_k)
    for e in range(logits.shape[1]):
        column = [s for p, s in score.items() if p[1] == e]
        assume(len(set(column)) == len(column))
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    plain = cm.route(logits, cm.Gating(top_k), cm.Capacity(factor))
    permuted = cm.route(logits[order], cm.Gating(top_k), cm.Capacity(factor))
    assert permuted.expert_ids.equal(plain.expert_ids[order])
    assert permuted.weights.equal(plain.weights[order])
    assert (permuted.rows >= 0).equal((plain.rows >= 0)[order])


@given(layer=layers(), factor=FACTORS, policy=st.sampled_from(["score", "keep_first", "keep_last"]))
def test_item_05_relabelling_experts(backend, layer, factor, policy):
    """On given scores, so that no sum changes its order."""
    logits, top_k = layer
    ids, weights, _ = backend.gate(logits, cm.Gating(top_k))
    experts = logits.shape[1]
    label = torch.randperm(experts, generator=torch.Generator().manual_seed(top_k))
    plain = cm.select(ids, weights, experts, cm.Capacity(factor, policy=policy))
    renamed = cm.select(label[ids.long()], weights, experts, cm.Capacity(factor, policy=policy))
    assert renamed.weights.equal(plain.weights)
    assert renamed.tokens_per_expert[label].equal(plain.tokens_per_expert)


@given(layer=layers(st.sampled_from(["distinct", "levels"])), factor=FACTORS)
def test_item_05_adding_a_constant(backend, layer, factor):
    """Multiples of 1/16 plus whole numbers: the shift is exact in float32."""
    logits, top_k = layer
    shift = torch.arange(len(logits))[:, None] % 9 - 4.0
    plain = cm.route(logits, cm.Gating(top_k), cm.Capacity(factor))
    shifted = cm.route(logits + shift, cm.Gating(top_k), cm.Capacity(factor))
    assert all(a.equal(b) for a, b in zip(plain, shifted, strict=True))


@given(layer=layers(), policy=POLICIES)
def test_item_06_no_bound_is_dropless(backend, layer, policy):
    logits, top_k = layer
    gating = cm.Gating(top_k, renormalize="topk")
    plain = cm.route(logits, gating)
    assert kept_pairs(plain) == topk_pairs(logits, top_k)
    for capacity in [
        cm.Capacity(float("inf"), policy=policy),
        cm.Capacity(limit=len(logits), policy=policy),
        cm.Capacity(limit=2**31 - 1, policy=policy),
        cm.Capacity(factor=logits.shape[1] / top_k, policy=policy),
        cm.Capacity(factor=1e30, policy=policy),
    ]:
        routing = cm.route(logits, gating, capacity)
        for name in cm.Routing._fields[:3] + cm.Routing._fields[4:]:
            assert getattr(routing, name).equal(getattr(plain, name)), name
    nothing = cm.route(logits, gating, cm.Capacity(0.0, policy=policy))
    assert not kept_pairs(nothing)
    assert not nothing.weights.any()


EXPANSIONS = st.sampled_from(
    [
        {},
        {"expand": "rank", "extra": 2},
        {"expand": "rank", "extra": 2, "expand_priority": "topk_first"},
        {"expand": "local", "local_experts": (0, 1)},
        {"expand": "local", "local_experts": (0, 1), "expand_priority": "topk_first"},
        {"scope": "device", "experts_per_device": 1},
        {"scope": "device", "experts_per_device": None},
    ]
)


@given(layer=layers(), policy=POLICIES, options=EXPANSIONS, pair=st.tuples(FACTORS, FACTORS))
def test_item_07_monotone(backend, layer, policy, options, pair):
    logits, top_k = layer
    if "experts_per_device" in options:
        options = options | {"experts_per_device": options["experts_per_device"] or logits.shape[1]}
    low, high = (
        kept_pairs(cm.route(logits, cm.Gating(top_k), cm.Capacity(f, policy=policy, **options)))
        for f in sorted(pair)
    )
    assert low <= high


@given(layer=layers(), factor=FACTORS, ends=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_item_08_expanded_drop(backend, layer, factor, ends):
    logits, top_k = layer
    tokens, experts = logits.shape
    start, stop = sorted(min(end, experts) for end in ends)
    local = range(start, stop)
    bound = min(oracle.share(tokens, experts, top_k, factor), tokens)
    gating = cm.Gating(top_k)
    plain = cm.route(logits, gating, cm.Capacity(factor))
    ed = cm.Capacity(factor, expand="local", local_experts=(start, stop))
    by_score = cm.route(logits, gating, ed)
    by_rank = cm.route(logits, gating, replace(ed, expand_priority="topk_first"))
    td, score = kept_pairs(plain), scores_of(backend, logits, top_k)
    assert td <= kept_pairs(by_rank)
    for routing in (by_score, by_rank):
        kept = kept_pairs(routing)
        assert {p for p in kept if p[1] not in local} == {p for p in td if p[1] not in local}
        assert all(load_of(routing)[e] == bound for e in local)
        assert all(a >= b for a, b in zip(load_of(routing), load_of(plain), strict=True))
        assert max(load_of(routing)) <= bound
        assert sum(score[p] for p in kept) >= sum(score[p] for p in td) * (1 - 1e-12)
    for e in local:  # expert choice: the best of the whole column
        column = sorted((-score[t, e], t) for t in range(tokens))
        assert {t for _, t in column[:bound]} == {t for t, x in kept_pairs(by_score) if x == e}


@given(layer=layers(), policy=POLICIES, options=EXPANSIONS, most=st.sampled_from([None, 1, 2, 5]))
def test_item_09_a_token_lists_an_expert_once(backend, layer, policy, options, most):
    logits, top_k = layer
    experts = logits.shape[1]
    if "experts_per_device" in options:
        options = options | {"experts_per_device": options["experts_per_device"] or experts}
    capacity = cm.Capacity(0.9, policy=policy, max_experts_per_token=most, **options)
    routing = cm.route(logits, cm.Gating(top_k), capacity)
    for ids, rows, weights in zip(
        *(x.tolist() for x in routing[:1] + routing[2:3] + routing[1:2]), strict=True
    ):
        used = [e for e in ids if e < experts]
        assert len(used) == len(set(used))
        assert min(ids) >= 0
        assert all(
            row == -1 and w == 0
            for e, row, w in zip(ids, rows, weights, strict=True)
            if e == experts
        )
        assert all(w == 0 for row, w in zip(rows, weights, strict=True) if row < 0)
        assert sum(row >= 0 for row in rows) <= (most or len(rows))
