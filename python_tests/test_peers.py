"""Other frameworks' capacity rules, each transcribed here, reproduced exactly with our switches.

Each peer is a function of (probabilities, top_k, capacity factor) that returns {(token, expert):
weight}; peers.md section 3 says where the formulas come from. What cannot be reproduced, and should
not be: Megatron-Core's ``position`` (``torch.topk`` over 0/1 ties, no defined order), FastMoE's
``atomicSub`` race, DeepSpeed's random token selection (``torch.rand``).
"""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from cases import router_logits
from checks import kept_pairs

SHAPES = [(100, 8, 2, 1.0), (256, 8, 2, 1.0), (257, 60, 4, 1.25), (33, 8, 1, 0.8), (64, 16, 4, 1.2)]
shapes = pytest.mark.parametrize(("tokens", "experts", "top_k", "factor"), SHAPES)


def logits_for(tokens, experts):
    """Skewed, with a little noise so that no two scores of a column tie."""
    noise = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(tokens))
    return router_logits(tokens, experts, "skewed", seed=experts) + noise / 8


def listed(probs, top_k):
    """Each token's top-k, best first."""
    return [sorted(range(len(row)), key=lambda e: (-row[e], e))[:top_k] for row in probs]


def keep_best(pairs, capacity, score):
    kept = set()
    for e in {e for _, e in pairs}:
        column = sorted((p for p in pairs if p[1] == e), key=lambda p: -score[p])
        kept |= set(column[:capacity])
    return kept


def keep_arrivals(pairs, capacity):
    """First come, first served, in the order of the list."""
    load, kept = {}, set()
    for t, e in pairs:
        load[e] = load.get(e, 0) + 1
        if load[e] <= capacity:
            kept.add((t, e))
    return kept


def weights_of(routing):
    ids, rows, weights = (x.tolist() for x in (routing.expert_ids, routing.rows, routing.weights))
    return {
        (t, ids[t][j]): weights[t][j]
        for t in range(len(ids))
        for j in range(len(ids[t]))
        if rows[t][j] >= 0
    }


def assert_same_layer(routing, peer):
    ours = weights_of(routing)
    assert set(ours) == set(peer)
    assert ours == pytest.approx(peer, rel=3e-6)


# ------------------------------------------------------------------------------------- DeepSpeed


def deepspeed_capacity(tokens, experts, top_k, factor, min_capacity):
    return max(math.ceil(tokens / experts * factor * top_k), min_capacity)


def deepspeed_topkgating(probs, top_k, capacity, drop_policy):
    """Gates of the kept pairs, divided by their sum after the drop."""
    pairs = [(t, e) for t, row in enumerate(listed(probs, top_k)) for e in row]
    score = {(t, e): probs[t][e] for t, e in pairs}
    if drop_policy == "probs":
        kept = keep_best(pairs, capacity, score)
    else:
        kept = keep_arrivals(pairs, capacity)
    total = {}
    for t, e in kept:
        total[t] = total.get(t, 0.0) + score[t, e]
    return {(t, e): score[t, e] / total[t] for t, e in kept}


@shapes
@pytest.mark.parametrize("min_capacity", [4, 40])
@pytest.mark.parametrize(
    ("drop_policy", "policy"), [("probs", "score"), ("position", "keep_first")]
)
def test_deepspeed(backend, tokens, experts, top_k, factor, min_capacity, drop_policy, policy):
    logits = logits_for(tokens, experts)
    limit = deepspeed_capacity(tokens, experts, top_k, factor, min_capacity)
    probs = logits.double().softmax(1).tolist()
    peer = deepspeed_topkgating(probs, top_k, limit, drop_policy)
    gating = cm.Gating(top_k, renormalize="kept")
    routing = cm.route(logits, gating, cm.Capacity(limit=limit, policy=policy))
    assert_same_layer(routing, peer)


# --------------------------------------------------------------------------------- Megatron-Core


def megatron_token_dropping(logits, top_k, factor):
    """Softmax over the top-k's logits; per expert the C largest of those; weights unchanged."""
    tokens, experts = len(logits), len(logits[0])
    capacity = math.ceil(tokens * top_k / experts * factor)
    weight = {}
    for t, row in enumerate(listed(logits, top_k)):
        top = torch.tensor([logits[t][e] for e in row], dtype=torch.float64).softmax(0).tolist()
        weight |= {(t, e): w for e, w in zip(row, top, strict=True)}
    kept = set(weight) if capacity > tokens else keep_best(list(weight), capacity, weight)
    return {pair: weight[pair] for pair in kept}


@shapes
def test_megatron(backend, tokens, experts, top_k, factor):
    if top_k == 1:
        pytest.skip("every weight is 1 and torch.topk picks among ties as it likes")
    logits = logits_for(tokens, experts)
    peer = megatron_token_dropping(logits.tolist(), top_k, factor)
    gating = cm.Gating(top_k, renormalize="topk")
    by_weight = cm.route(logits, gating, cm.Capacity(factor, drop_score="weight"))
    assert_same_layer(by_weight, peer)
    by_prob = cm.route(logits, gating, cm.Capacity(factor))
    assert kept_pairs(by_prob) != set(peer), "the ranking is what sets Megatron apart (1.7b)"


# ----------------------------------------------------------------------------------------- Tutel


def tutel_extract_critical(probs, top_k, factor, prioritized):
    """All first choices arrive before any second choice; gates are divided before the drop."""
    tokens, experts = len(probs), len(probs[0])
    capacity = top_k * int(factor * math.ceil(tokens / experts))
    top = listed(probs, top_k)
    order = list(range(tokens))
    if prioritized:
        order.sort(key=lambda t: -max(probs[t]))
    kept = keep_arrivals([(t, top[t][j]) for j in range(top_k) for t in order], capacity)
    total = [sum(probs[t][e] for e in top[t]) for t in range(tokens)]
    return capacity, {(t, e): probs[t][e] / total[t] for t, e in kept}


@shapes
@pytest.mark.parametrize("prioritized", [False, True])
def test_tutel(backend, tokens, experts, top_k, factor, prioritized):
    """Choice-major arrival is ``select`` with scores that say when a pair arrives."""
    logits = logits_for(tokens, experts)
    probs = logits.double().softmax(1)
    limit, peer = tutel_extract_critical(probs.tolist(), top_k, factor, prioritized)
    top = cm.route(logits, cm.Gating(top_k, renormalize="topk"))
    arrival = torch.arange(tokens)
    if prioritized:
        arrival = probs.amax(1).argsort(descending=True).argsort()
    scores = -(torch.arange(top_k) * tokens + arrival[:, None]).float()
    capacity = cm.Capacity(limit=limit)
    routing = cm.select(top.expert_ids, top.weights, experts, capacity, scores=scores)
    assert_same_layer(routing, peer)


def test_choice_major_is_not_token_major(backend):
    """Token 1's first choice stands behind token 0's second: Tutel keeps it, DeepSpeed does not."""
    ids, weights = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[0.6, 0.4], [0.7, 0.3]])
    first = cm.select(ids, weights, 2, cm.Capacity(limit=1, policy="keep_first"))
    choice = torch.tensor([[0.0, -1.0]]).expand(2, 2)
    tutel = cm.select(ids, weights, 2, cm.Capacity(limit=1), scores=choice)
    assert kept_pairs(first) == {(0, 1), (0, 0)}
    assert kept_pairs(tutel) == {(0, 1), (1, 0)}


# ------------------------------------------------------------------------------------ MegaBlocks


def megablocks_moe(probs, top_k, factor, normalize):
    """Stable sort by expert, bins cut at C: token-major. int() rounds down."""
    tokens, experts = len(probs), len(probs[0])
    capacity = int(factor * top_k * tokens / experts)
    top = listed(probs, top_k)
    by_expert = sorted(((e, t) for t, row in enumerate(top) for e in row), key=lambda p: p[0])
    kept = keep_arrivals([(t, e) for e, t in by_expert], capacity)
    total = [sum(probs[t][e] for e in top[t]) if normalize else 1.0 for t in range(tokens)]
    return {(t, e): probs[t][e] / total[t] for t, e in kept}


@shapes
@pytest.mark.parametrize(("normalize", "renormalize"), [(False, "none"), (True, "topk")])
def test_megablocks(backend, tokens, experts, top_k, factor, normalize, renormalize):
    logits = logits_for(tokens, experts)
    peer = megablocks_moe(logits.double().softmax(1).tolist(), top_k, factor, normalize)
    capacity = cm.Capacity(factor, rounding="floor", policy="keep_first")
    routing = cm.route(logits, cm.Gating(top_k, renormalize=renormalize), capacity)
    assert_same_layer(routing, peer)


# ---------------------------------------------------------------------------------------- rounding


def test_four_roundings_of_one_layer():
    """The table's last column: T=100, E=8, k=2, factor 1."""
    assert deepspeed_capacity(100, 8, 2, 1.0, 4) == 25
    assert cm.expert_capacity(100, 8, 2, 1.0) == 25  # Megatron-Core, CASE-Lab
    assert 2 * int(1.0 * math.ceil(100 / 8)) == 26  # Tutel
    assert cm.expert_capacity(100, 8, 2, 1.0, "floor") == 25  # MegaBlocks
    assert math.ceil(1.2 * 100) * 2 // 8 == 30 == cm.expert_capacity(100, 8, 2, 1.2)  # FastMoE
    assert cm.expert_capacity(10, 60, 4, 1.0) == 1
    assert cm.expert_capacity(10, 60, 4, 1.0, "floor") == 0
