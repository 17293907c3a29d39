"""A caller's own layer for the tests of capmoe_kernels.compat, and the truth in float64."""

from __future__ import annotations

from types import SimpleNamespace

import torch

import oracle_mlp
from cases import make_experts, normal, router_logits, topk_of
from checks import assert_close_to_truth, expected_select

TOKENS, EXPERTS, TOP_K, HIDDEN, NEURONS = 40, 8, 2, 24, 20


def layer(dtype=torch.float32, **options):
    """(x, experts, topk_weights, topk_ids) of a skewed layer."""
    experts = make_experts(EXPERTS, HIDDEN, NEURONS, dtype, **options)
    logits = router_logits(TOKENS, EXPERTS, "skewed", seed=5)
    ids, weights = topk_of(logits.softmax(1), TOP_K)
    return normal((TOKENS, HIDDEN), dtype, seed=6), experts, weights, ids.int()


def decide(ids, weights, capacity, num_experts=EXPERTS, scores=None):
    """The oracle's decision, as tensors."""
    scores = weights if scores is None else scores
    decision = expected_select(ids, weights, scores, num_experts, capacity)
    return SimpleNamespace(
        expert_ids=torch.tensor(decision.expert_ids),
        rows=torch.tensor(decision.rows),
        weights=torch.tensor(decision.weights, dtype=torch.float32),
        kept=decision.kept,
    )


def local(decision, expert_map):
    """What is left of a decision on the rank that has ``expert_map``'s experts."""
    placed = torch.tensor([*expert_map.tolist(), -1])[decision.expert_ids.long()]
    here = (decision.rows >= 0) & (placed >= 0)
    return SimpleNamespace(
        expert_ids=torch.where(here, placed, -1),
        rows=torch.where(here, decision.rows, -1),
        weights=torch.where(here, decision.weights, 0.0),
    )


def assert_runs(out, x, experts, decision):
    """``out`` is the experts' weighted sum over the decision's kept pairs, within rule."""
    assert out.dtype == x.dtype
    truth = oracle_mlp.moe(x, experts, decision)
    assert_close_to_truth(out, truth, oracle_mlp.same_dtype_moe(x, experts, decision))
    lonely = (decision.rows < 0).all(1)
    assert out[lonely].eq(0).all()


def tables(tokens=50, style="skewed", dtype=torch.float32):
    """Megatron's (probs, routing_map), as its router makes them: zero outside the map."""
    scores = router_logits(tokens, EXPERTS, style, seed=tokens).softmax(1)
    ids, _ = topk_of(scores, TOP_K)
    routing_map = torch.zeros(tokens, EXPERTS, dtype=torch.bool).scatter(1, ids, True)
    return torch.where(routing_map, scores, 0.0).to(dtype), routing_map
