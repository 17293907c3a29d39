"""Routing per rank, against plain Python; the ranks together; their random numbers."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import Capacity, Experts, Gating
from capmoe_kernels.integrations import ranks
from capmoe_kernels.integrations.ranks import local_experts, merge, route_per_rank
from capmoe_kernels.integrations.transformers import apply
from tiny_model import LAYERS, logits_of, tiny_model, token_ids

EXPAND = Capacity(factor=1.0, expand="local", local_experts=(0, 1))


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def input_ids():
    return token_ids()


def kept_by_score(scores, top_k, limit, local):
    """expert -> tokens that it keeps: the best of those that ask, and of all where it is local."""
    num_tokens, num_experts = scores.shape
    asking = {e: set() for e in range(num_experts)}
    for token in range(num_tokens):
        best = sorted(range(num_experts), key=lambda e: (-scores[token, e], e))[:top_k]
        for expert in {*best, *local}:
            asking[expert].add(token)
    return {
        e: set(sorted(tokens, key=lambda t: (-scores[t, e], t))[:limit])
        for e, tokens in asking.items()
    }


def kept_by(routing):
    kept = {e: set() for e in range(routing.tokens_per_expert.shape[0])}
    for token, column in (routing.rows >= 0).nonzero().tolist():
        kept[int(routing.expert_ids[token, column])].add(token)
    return kept


@pytest.mark.parametrize("capacity", [Capacity(factor=1.0), EXPAND], ids=["drop", "expand"])
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("num_tokens", [0, 3, 57])
def test_each_rank_bounds_its_own_tokens(capacity, num_ranks, num_tokens):
    logits = torch.randn(num_tokens, 8, generator=torch.Generator().manual_seed(num_tokens))
    logits[:, 0] += 1.0
    routings = route_per_rank(logits, Gating(top_k=2), capacity, num_ranks)
    assert len(routings) == num_ranks
    sizes = [num_tokens // num_ranks + (r < num_tokens % num_ranks) for r in range(num_ranks)]
    start = 0
    for rank, (size, routing) in enumerate(zip(sizes, routings, strict=True)):
        own = logits[start : start + size]
        start += size
        limit = cm.expert_capacity(size, 8, 2, 1.0)
        local = range(*local_experts(rank, num_ranks, 8)) if capacity.expand == "local" else ()
        expected = kept_by_score(own.softmax(1).numpy(), 2, limit, local)
        assert kept_by(routing) == expected
        assert routing.tokens_per_expert.max() <= limit


def test_extra_pairs_go_to_the_ranks_own_experts_only():
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    roomy = Capacity(factor=2.0, expand="local", local_experts=(0, 1))
    for rank, routing in enumerate(route_per_rank(logits, Gating(top_k=2), roomy, 4)):
        extra = routing.expert_ids[:, 2:][routing.rows[:, 2:] >= 0]
        assert len(extra) > 0
        assert set(extra.tolist()) <= {2 * rank, 2 * rank + 1}


def test_per_rank_is_not_global_capacity():
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    together, apart = (
        merge(route_per_rank(logits, Gating(top_k=2), Capacity(factor=1.0), d)) for d in (1, 4)
    )
    assert kept_by(together) != kept_by(apart)


def test_random_ranks_draw_differently():
    logits = torch.randn(16, 8).repeat(2, 1)
    one, two = route_per_rank(logits, Gating(top_k=2), Capacity(limit=1, policy="random"), 2)
    assert kept_by(one) != kept_by(two)


def test_random_layers_and_ranks_share_no_seed(input_ids, monkeypatch):
    seeds = []

    def spy(logits, gating, capacity, **options):
        seeds.append(capacity.seed)
        return cm.route(logits, gating, capacity, **options)

    monkeypatch.setattr(ranks, "route", spy)
    capacity = Capacity(factor=1.0, policy="random", seed=7)
    logits_of(apply(tiny_model(), capacity=capacity, num_ranks=4), input_ids)
    assert seeds == list(range(7, 7 + 4 * LAYERS))


@pytest.mark.parametrize("capacity", [None, Capacity(factor=1.0), EXPAND])
def test_merged_ranks_compute_what_each_would(capacity):
    generator = torch.Generator().manual_seed(4)
    logits, tokens = (torch.randn(45, n, generator=generator) for n in (8, 16))
    weights = [torch.randn(*shape, generator=generator) for shape in ((8, 24, 16), (8, 16, 12))]
    experts = Experts(*weights)
    routings = route_per_rank(logits, Gating(top_k=2), capacity, 4)
    merged = merge(routings)

    def run(x, routing):
        return cm.combine(cm.grouped_mlp(cm.dispatch(x, routing), experts, routing), routing)

    apart = [run(x, r) for x, r in zip(tokens.tensor_split(4), routings, strict=True)]
    torch.testing.assert_close(run(tokens, merged), torch.cat(apart))
    assert torch.equal(merged.demand_per_expert, sum(r.demand_per_expert for r in routings))
    assert torch.equal(merged.tokens_per_expert, sum(r.tokens_per_expert for r in routings))
