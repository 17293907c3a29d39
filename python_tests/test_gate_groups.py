"""The gate's selection bias and its groups of experts: what ranks and what never weighs."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from cases import normal, router_logits
from checks import check_gate


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", ["none", "topk"])
def test_bias_ranks_and_never_weighs(backend, scoring, renormalize):
    logits = router_logits(40, 16, "distinct").bfloat16()
    bias = normal((16,), seed=5)
    gating = cm.Gating(top_k=4, scoring=scoring, renormalize=renormalize)
    check_gate(backend, logits, gating, bias)
    check_gate(backend, logits, gating, bias, drop_score="weight")
    ids, weights, _ = backend.gate(logits, gating, bias)
    plain, _, _ = backend.gate(logits, gating)
    assert ids.ne(plain).any(), "this bias was meant to matter"
    shifted, shifted_weights, _ = backend.gate(logits, gating, bias + 0.25)
    assert shifted.equal(ids)
    assert shifted_weights.equal(weights)


def test_bias_alone_decides(backend):
    bias = torch.tensor([0.0, 5.0, -5.0, 3.0, 4.0])
    ids, weights, _ = backend.gate(torch.zeros(2, 5), cm.Gating(top_k=3), bias)
    assert ids.tolist() == [[1, 4, 3]] * 2
    torch.testing.assert_close(weights, torch.full((2, 3), 0.2))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
@pytest.mark.parametrize(
    ("experts", "groups", "chosen"), [(32, 8, 3), (60, 6, 2), (8, 8, 4), (12, 2, 2)]
)
def test_groups(backend, scoring, group_score, experts, groups, chosen):
    top_k = min(6, experts // groups * chosen)
    gating = cm.Gating(
        top_k=top_k,
        scoring=scoring,
        num_groups=groups,
        topk_groups=chosen,
        group_score=group_score,
    )
    logits = router_logits(50, experts, "distinct", seed=experts) / 4
    check_gate(backend, logits, gating)
    check_gate(backend, logits, gating, normal((experts,), seed=6))
    ids, _, _ = backend.gate(logits, gating)
    used = [len({e // (experts // groups) for e in row}) for row in ids.tolist()]
    assert max(used) <= chosen


def test_group_scores_differ(backend):
    """Group 0 has the best expert, group 1 the best two."""
    logits = torch.tensor([[3.0, -3.0, -3.0, 2.0, 2.0, -3.0]])
    options = {"scoring": "sigmoid", "num_groups": 2, "topk_groups": 1}
    by_max, _, _ = backend.gate(logits, cm.Gating(top_k=2, group_score="max", **options))
    by_sum, _, _ = backend.gate(logits, cm.Gating(top_k=2, group_score="top2_sum", **options))
    assert by_max.tolist() == [[0, 1]]
    assert by_sum.tolist() == [[3, 4]]


def test_group_ties_go_to_the_lower_group(backend):
    gating = cm.Gating(top_k=4, num_groups=4, topk_groups=2)
    ids, _, _ = backend.gate(torch.zeros(2, 8), gating)
    assert ids.tolist() == [[0, 1, 2, 3]] * 2


def test_experts_of_forbidden_groups_are_no_candidates(backend):
    """DeepSeek-V2's score 0 would let them in as local experts (1.3); a mask does not."""
    logits = torch.tensor([[4.0, 3.0, 1.0, 0.0, 2.0, 1.0, 0.0, 0.0]])
    gating = cm.Gating(top_k=2, num_groups=4, topk_groups=2)
    ids, _, _ = backend.gate(logits, gating, expand="local", local=(2, 6))
    assert ids.tolist() == [[0, 1, 4, 5, 8, 8]]
    ids, _, _ = backend.gate(logits, gating, expand="rank", extra=4)
    assert ids.tolist() == [[0, 1, 4, 5, 8, 8]]


def test_a_forbidden_expert_does_not_lift_its_group(backend):
    logits = torch.tensor([[-math.inf, 0.0, 1.0, 0.5], [-math.inf, -math.inf, -3.0, -4.0]])
    bias = torch.tensor([9.0, 0.0, 0.0, 0.0])
    gating = cm.Gating(top_k=1, scoring="sigmoid", num_groups=2, topk_groups=1)
    ids, _, _ = backend.gate(logits, gating, bias)
    assert ids.tolist() == [[2], [2]]
