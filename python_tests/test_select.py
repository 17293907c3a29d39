"""Who stays: Token Drop, Expanded Drop, rerouting, device scope, masks, priorities, own top-k."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from cases import every_case, normal, router_logits, topk_of
from checks import assert_routing, check_route, expected_select, kept_pairs, same_bits

POLICIES = ["score", "keep_first", "keep_last", "random"]


@every_case
@pytest.mark.parametrize("policy", POLICIES)
def test_token_drop(backend, poison, case, policy):
    bound = {"factor": case.capacity.factor, "limit": case.capacity.limit}
    check_route(backend, case.logits(), case.gating, cm.Capacity(policy=policy, seed=3, **bound))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 257, 300])
def test_every_score_equal(backend, policy, tokens):
    """Ties go to the lower token, and never more than C stay."""
    capacity = cm.Capacity(limit=min(7, tokens), policy=policy, seed=2**62 + 5)
    routing = check_route(backend, torch.zeros(tokens, 6), cm.Gating(top_k=2), capacity)
    if policy == "score":
        assert kept_pairs(routing) == {(t, e) for t in range(min(7, tokens)) for e in (0, 1)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scores", ["ties", "distinct", "not numbers"])
def test_a_priority_that_all_share_changes_nothing(backend, policy, scores):
    """Without one the CPU's select looks for thresholds, with one it ranks."""
    if "emulated" in backend.name:
        pytest.skip("minutes in an emulator, of kernels that know one way")
    logits = router_logits(70, 5, "levels" if scores == "ties" else "gaussian", seed=1)
    ids, ranked = topk_of(logits, 3)
    ids[::9, 1] = -1
    ids[::5, 2] = ids[::5, 0]
    if scores == "not numbers":
        ranked[::3] = -math.inf
        ranked[1::7, 0] = math.nan
        ranked[2::7, 1] = -0.0
    ones, alike = torch.ones_like(ranked), torch.full((70,), 3)
    for limit, mask in [(0, None), (1, None), (22, None), (30, torch.arange(70) % 11 != 4)]:
        problem = (ids, ones, ranked, 5, cm.Capacity(limit=limit, policy=policy, seed=limit))
        plain = backend.select(*problem, token_mask=mask)
        listed = backend.select(*problem, token_mask=mask, token_priority=alike)
        for name, a, b in zip(plain._fields, plain, listed, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("policy", POLICIES)
def test_any_number_of_threads_routes_alike(backend, policy):
    logits = router_logits(500, 20, "skewed")
    capacity = cm.Capacity(factor=0.7, policy=policy)
    before, routings = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        routings.append(cm.route(logits, cm.Gating(3, renormalize="topk"), capacity))
    torch.set_num_threads(before)
    for other in routings[1:]:
        for a, b in zip(routings[0], other, strict=True):
            assert same_bits(a, b)


def test_hand_example(backend):
    """Expert 0 is asked for by all four, scores .5 .4 .5 .1; expert 1 by two."""
    ids = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 2]])
    weights = torch.tensor([[0.5, 0.2], [0.4, 0.3], [0.5, 0.1], [0.1, 0.3]])
    wanted = {
        "score": {0, 2},
        "keep_first": {0, 1},
        "keep_last": {2, 3},
    }
    for policy, tokens in wanted.items():
        routing = cm.select(ids, weights, 3, cm.Capacity(limit=2, policy=policy))
        assert {t for t, e in kept_pairs(routing) if e == 0} == tokens
        assert routing.demand_per_expert.tolist() == [4, 2, 2]
        assert routing.tokens_per_expert.tolist() == [2, 2, 2]
        assert routing.expert_ids.tolist() == ids.tolist(), "a dropped pair keeps its id"


def test_scores_rank_and_weights_weigh(backend):
    ids = torch.zeros(4, 1, dtype=torch.int32)
    weights = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    scores = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    routing = cm.select(ids, weights, 2, cm.Capacity(limit=2), scores=scores)
    assert routing.weights.tolist() == [[0.0], [0.0], [2.0], [1.0]]
    routing = cm.select(ids, weights, 2, cm.Capacity(limit=2))
    assert routing.weights.tolist() == [[4.0], [3.0], [0.0], [0.0]]


def test_awkward_scores(backend):
    """Negative, -0.0, denormal and -inf scores are ordered as numbers are."""
    values = [-0.0, 0.0, 1e-40, 2e-40, -1e-40, -1.0, -2.0, -math.inf, 1e-20, 3e38, -3e38, 0.0]
    ids = torch.zeros(len(values), 1, dtype=torch.int32)
    scores = torch.tensor(values)[:, None]
    weights = torch.ones(len(values), 1)
    for limit in range(len(values) + 1):
        capacity = cm.Capacity(limit=limit)
        routing = cm.select(ids, weights, 1, capacity, scores=scores)
        assert_routing(routing, expected_select(ids, weights, scores, 1, capacity))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**32 + 1, 2**63 - 1])
def test_random_is_the_documented_hash(backend, seed):
    ids, weights = topk_of(normal((70, 12), seed=4), 3)
    capacity = cm.Capacity(factor=0.5, policy="random", seed=seed)
    routing = cm.select(ids, weights, 12, capacity)
    assert_routing(routing, expected_select(ids, weights, weights, 12, capacity))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("priority", ["score", "topk_first"])
@pytest.mark.parametrize(
    "expand",
    [
        {"expand": "local", "local_experts": (2, 5)},
        {"expand": "local", "local_experts": (0, 8)},
        {"expand": "local", "local_experts": (4, 4)},
        {"expand": "rank", "extra": 2},
        {"expand": "rank", "extra": 99},
    ],
    ids=str,
)
def test_expanded_drop(backend, poison, policy, priority, expand):
    for style in ["skewed", "levels"]:
        capacity = cm.Capacity(factor=0.9, policy=policy, expand_priority=priority, **expand)
        for renormalize in ["none", "topk", "kept"]:
            gating = cm.Gating(top_k=2, renormalize=renormalize)
            check_route(backend, router_logits(50, 8, style), gating, capacity)


def test_expand_priority(backend):
    """Expert 0: token 0 asks with .3, token 1 has it as an extra with .4."""
    logits = torch.tensor([[0.30, 0.2, 0.2, 0.3], [0.40, 0.05, 0.05, 0.5]]).log()
    for priority, winner in [("score", 1), ("topk_first", 0)]:
        capacity = cm.Capacity(
            limit=1, expand="local", local_experts=(0, 1), expand_priority=priority
        )
        routing = cm.route(logits, cm.Gating(top_k=1), capacity)
        assert {t for t, e in kept_pairs(routing) if e == 0} == {winner}
        assert routing.demand_per_expert.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("style", ["skewed", "levels"])
def test_max_experts_per_token(backend, most, style):
    for options in [
        {},
        {"expand": "local", "local_experts": (0, 6)},
        {"expand": "rank", "extra": 3},
    ]:
        capacity = cm.Capacity(factor=1.0, max_experts_per_token=most, **options)
        for renormalize in ["none", "kept"]:
            gating = cm.Gating(top_k=3, renormalize=renormalize)
            routing = check_route(backend, router_logits(60, 12, style), gating, capacity)
            assert (routing.rows >= 0).sum(1).max().item() <= most


def test_max_experts_per_token_breaks_ties_by_expert(backend):
    """Own top-k in any order: the lower expert id stays, not the earlier column."""
    ids = torch.tensor([[5, 1, 3]])
    weights = torch.tensor([[0.5, 0.5, 0.5]])
    routing = cm.select(ids, weights, 6, cm.Capacity(max_experts_per_token=2))
    assert kept_pairs(routing) == {(0, 1), (0, 3)}


@pytest.mark.parametrize("per_device", [1, 2, 4, 12])
@pytest.mark.parametrize("policy", POLICIES)
def test_device_scope(backend, poison, per_device, policy):
    scope = {"scope": "device", "experts_per_device": per_device, "policy": policy}
    for style in ["skewed", "levels", "one_expert"]:
        logits = router_logits(65, 12, style)
        for expand in [{}, {"expand": "local", "local_experts": (4, 8)}, {"reroute_rounds": 3}]:
            check_route(backend, logits, cm.Gating(top_k=3), cm.Capacity(0.7, **scope, **expand))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_token_mask(backend, poison, policy, share):
    mask = torch.rand(90, generator=torch.Generator().manual_seed(1)) < share
    for style in ["skewed", "levels"]:
        logits = router_logits(90, 8, style)
        logits[~mask] = math.nan
        for options in [{}, {"expand": "local", "local_experts": (1, 3)}, {"reroute_rounds": 2}]:
            capacity = cm.Capacity(factor=1.0, policy=policy, **options)
            routing = check_route(backend, logits, cm.Gating(2), capacity, token_mask=mask)
            assert routing.expert_ids[~mask].eq(8).all()
            asked = min(int(mask.sum()) * 2, 90 * 2)
            assert routing.demand_per_expert.sum().item() == asked


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_token_priority(backend, policy, dtype):
    """Image-First keeps text (1.4): any text candidate is kept before any image candidate."""
    is_text = torch.arange(80) % 3 == 0
    logits = router_logits(80, 8, "levels")
    for priority in [is_text, ~is_text, is_text * -5, torch.arange(80) % 4, is_text * 2**31 - 1]:
        priority = priority.to(dtype) if priority.max() < 2**31 else priority.long()
        capacity = cm.Capacity(factor=0.6, policy=policy)
        check_route(backend, logits, cm.Gating(top_k=2), capacity, token_priority=priority)


def test_token_priority_of_64_bits(backend):
    priority = torch.tensor([2**40, 2**40 + 1, -(2**63), 2**63 - 1, 0])
    ids, weights = torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1)
    for limit, kept in [(1, {3}), (2, {3, 1}), (3, {3, 1, 0}), (4, {3, 1, 0, 4})]:
        routing = cm.select(ids, weights, 1, cm.Capacity(limit=limit), token_priority=priority)
        assert {t for t, _ in kept_pairs(routing)} == kept


def test_priority_outranks_topk_membership(backend):
    """The class is asked first, then membership of the top-k, then the policy."""
    logits = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    capacity = cm.Capacity(
        limit=1, expand="local", local_experts=(0, 1), expand_priority="topk_first"
    )
    for priority, winner in [([0, 1], 1), ([1, 0], 0), ([0, 0], 0)]:
        classes = torch.tensor(priority)
        routing = cm.route(logits, cm.Gating(top_k=1), capacity, token_priority=classes)
        assert {t for t, e in kept_pairs(routing) if e == 0} == {winner}


def test_everything_at_once(backend, poison):
    mask = torch.arange(120) % 5 != 2
    for seed in range(4):
        capacity = cm.Capacity(
            factor=0.75,
            expand="local",
            local_experts=(12, 24),
            expand_priority="topk_first",
            max_experts_per_token=3,
            scope="device",
            experts_per_device=12,
            policy="random",
            seed=seed,
        )
        gating = cm.Gating(4, "sigmoid", "kept", 2.5, 6, 3, "top2_sum")
        options = {"token_mask": mask, "token_priority": torch.arange(120) % 2}
        logits = router_logits(120, 60, "distinct", seed) / 8
        options |= {"selection_bias": normal((60,), seed=seed), "row_alignment": 8}
        check_route(backend, logits, gating, capacity, **options)
