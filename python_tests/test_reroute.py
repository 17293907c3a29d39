"""Token Reroute: section 1.6's golden vector and the oracle."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from cases import router_logits
from checks import check_route, kept_pairs

POLICIES = ["score", "keep_first", "keep_last", "random"]

S_1_6 = [
    [0.60, 0.25, 0.10, 0.05],
    [0.55, 0.05, 0.30, 0.10],
    [0.50, 0.30, 0.15, 0.05],
    [0.45, 0.15, 0.05, 0.35],
    [0.10, 0.40, 0.20, 0.30],
]


FIRST_ROUND = {(0, 0), (1, 0), (1, 2), (2, 1), (3, 3), (4, 1), (4, 3)}
GOLDEN_1_6 = {  # rounds: kept, refused
    1: (FIRST_ROUND, {(2, 0), (3, 0), (0, 1)}),
    2: (FIRST_ROUND | {(2, 2)}, {(2, 0), (3, 0), (0, 1), (3, 1), (0, 2)}),
    3: (FIRST_ROUND | {(2, 2)}, {(2, 0), (3, 0), (0, 1), (3, 1), (0, 2), (3, 2), (0, 3)}),
}


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 2**31 - 1])
def test_reroute_golden_1_6(backend, rounds):
    kept, refused = GOLDEN_1_6[min(rounds, 3)]
    logits = torch.tensor(S_1_6).log()
    capacity = cm.Capacity(limit=2, reroute_rounds=rounds)
    routing = check_route(backend, logits, cm.Gating(top_k=2), capacity)
    assert kept_pairs(routing) == kept
    asked = {(t, e) for t, ids in enumerate(routing.expert_ids.tolist()) for e in ids if e < 4}
    assert asked - kept == refused
    assert routing.demand_per_expert.tolist() == [4, 3, 1, 2]
    assert routing.expert_ids.shape[1] == min(4, 2 * rounds)


@pytest.mark.parametrize("rounds", [2, 3, 5])
@pytest.mark.parametrize("policy", POLICIES)
def test_reroute(backend, poison, rounds, policy):
    for style in ["skewed", "levels"]:
        for renormalize in ["none", "topk", "kept"]:
            capacity = cm.Capacity(factor=0.8, reroute_rounds=rounds, policy=policy, seed=rounds)
            gating = cm.Gating(top_k=2, renormalize=renormalize)
            check_route(backend, router_logits(45, 10, style), gating, capacity)


LOSES_LATE = [[0.22, 0.38, 0.40], [0.56, 0.02, 0.42], [0.44, 0.31, 0.25], [0.59, 0.13, 0.27]]


@pytest.mark.parametrize("rounds", [3, 4, 5, 2**31 - 1])
def test_who_loses_late_asks_on(backend, rounds):
    """Token 2 holds expert 1 until token 0 comes in the third round, and asks expert 2 in a fourth,
    although there are three columns."""
    logits = torch.tensor(LOSES_LATE).log()
    capacity = cm.Capacity(limit=1, reroute_rounds=rounds)
    routing = check_route(backend, logits, cm.Gating(top_k=1), capacity)
    assert kept_pairs(routing) == {(0, 1), (1, 2), (3, 0)}
    assert routing.expert_ids[2].tolist() == [0, 1, 3 if rounds == 3 else 2]
