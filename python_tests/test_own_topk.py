"""select for a caller with its own top-k: sentinels, dtypes, strides, repeated experts."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from cases import normal, topk_of
from checks import assert_routing, expected_select

POLICIES = ["score", "keep_first", "keep_last", "random"]


def own_topk(tokens=50, num_experts=10, top_k=3):
    return topk_of(normal((tokens, num_experts), seed=8), top_k)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("sentinel", [-1, 10, 11, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("policy", POLICIES)
def test_any_id_outside_means_not_routed(backend, poison, dtype, sentinel, policy):
    ids, weights = own_topk()
    ids = ids.to(dtype)
    ids[::3, 1] = sentinel
    ids[7] = sentinel
    capacity = cm.Capacity(limit=5, policy=policy)
    routing = cm.select(ids, weights, 10, capacity)
    assert_routing(routing, expected_select(ids, weights, weights, 10, capacity))
    assert routing.expert_ids[7].tolist() == [10, 10, 10]


@pytest.mark.parametrize("sentinel", [2**32, 2**32 + 3, -(2**32), 2**63 - 1, -(2**63)])
def test_ids_of_64_bits_are_not_truncated(backend, sentinel):
    ids, weights = own_topk()
    ids[::2, 0] = sentinel
    routing = cm.select(ids, weights, 10, cm.Capacity(limit=5))
    assert_routing(routing, expected_select(ids, weights, weights, 10, cm.Capacity(limit=5)))


@pytest.mark.parametrize("policy", POLICIES)
def test_of_a_repeated_expert_the_first_listing_counts(backend, policy):
    ids = torch.randint(-1, 5, (60, 4), generator=torch.Generator().manual_seed(2))
    weights = normal((60, 4), seed=3)
    for capacity in [cm.Capacity(policy=policy), cm.Capacity(factor=0.4, policy=policy)]:
        routing = cm.select(ids, weights, 5, capacity)
        assert_routing(routing, expected_select(ids, weights, weights, 5, capacity))
    routing = cm.select(torch.tensor([[3, 3, 3]]), torch.tensor([[0.1, 0.7, 0.2]]), 4)
    assert routing.rows.tolist() == [[0, -1, -1]]
    assert routing.weights.tolist() == [[torch.tensor(0.1).item(), 0.0, 0.0]]
    assert routing.demand_per_expert.tolist() == [0, 0, 0, 1]


def test_strided_input(backend):
    ids, weights = own_topk(40, 16, 8)
    scores = normal((40, 8), seed=9)
    mask = torch.arange(40) % 7 != 0
    priority = torch.arange(40) % 3
    capacity = cm.Capacity(factor=0.5)
    views = {
        "rows": lambda x: x.repeat_interleave(2, 0)[::2],
        "columns": lambda x: x.repeat_interleave(3, -1)[..., ::3],
        "transposed": lambda x: x.t().contiguous().t(),
    }
    for name, view in views.items():
        strided = [view(x) for x in (ids, weights, scores)]
        vectors = [x.repeat_interleave(2)[::2] for x in (mask, priority)]
        assert not any(x.is_contiguous() for x in strided + vectors), name
        routing = cm.select(
            strided[0],
            strided[1],
            16,
            capacity,
            scores=strided[2],
            token_mask=vectors[0],
            token_priority=vectors[1],
        )
        options = {"token_mask": mask, "token_priority": priority}
        assert_routing(routing, expected_select(ids, weights, scores, 16, capacity, **options))


def test_expanded_one_row(backend):
    """A broadcast view: stride 0."""
    ids = torch.tensor([[2, 0]]).expand(9, 2)
    weights = torch.tensor([[0.6, 0.4]]).expand(9, 2)
    routing = cm.select(ids, weights, 3, cm.Capacity(limit=4))
    assert routing.tokens_per_expert.tolist() == [4, 0, 4]


def test_more_columns_than_experts(backend):
    ids = torch.tensor([[0, 1, 1, 0, -1, 2]])
    routing = cm.select(ids, torch.ones(1, 6), 2)
    assert routing.expert_ids.tolist() == [[0, 1, 2, 2, 2, 2]]
    assert routing.tokens_per_expert.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (0, 0)])
def test_nothing_to_select(backend, shape):
    ids = torch.zeros(shape, dtype=torch.int64)
    routing = cm.select(ids, torch.zeros(shape), 4, cm.Capacity(factor=1.0))
    assert routing.tokens_per_expert.tolist() == [0] * 4
    assert routing.expert_offsets.tolist() == [0] * 5
    assert routing.rows.shape == shape
    assert routing.row_tokens.numel() == 0


def test_capacity_factor_counts_the_columns(backend):
    """The caller's top-k is its number of columns: C = ceil(1.0 * 3 * 50 / 10) = 15."""
    ids, weights = own_topk()
    ids[:, 0] = 4
    routing = cm.select(ids, weights, 10, cm.Capacity(factor=1.0))
    assert routing.tokens_per_expert.max().item() == 15


def test_unused_scores_do_not_matter(backend):
    """Op level: what a gate left in unused columns, NaN included, reaches nothing."""
    ids, weights = own_topk()
    ids[::2, 2] = 10
    dirty = weights.clone()
    dirty[::2, 2] = math.nan
    clean = backend.select(ids, weights, weights, 10, cm.Capacity(limit=6))
    routing = backend.select(ids, dirty, dirty, 10, cm.Capacity(limit=6), kept_weight_sum=1.0)
    assert routing.rows.equal(clean.rows)
    assert not routing.weights.isnan().any()


def test_the_callers_tensors_are_left_alone(backend):
    ids, weights = own_topk()
    before = ids.clone(), weights.clone()
    cm.select(ids, weights, 10, cm.Capacity(limit=2))
    assert ids.equal(before[0])
    assert weights.equal(before[1])


def test_a_nan_score_ranks_below_every_number(backend):
    """The op's own rule: the public functions refuse NaN where they can see it."""
    scores = torch.tensor([[math.nan], [-1e30], [-math.inf], [-math.nan], [0.5]])
    ids = torch.zeros(5, 1, dtype=torch.int32)
    kept = []
    for limit in range(1, 6):
        routing = backend.select(ids, torch.ones(5, 1), scores, 1, cm.Capacity(limit=limit))
        kept.append(routing.row_tokens.tolist())
    # NaN counts as -inf, so those three stand in token order.
    assert kept == [[4], [1, 4], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]
