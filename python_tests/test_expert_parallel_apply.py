"""Renumbered experts: outputs that do not notice."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.distributed import Placement, apply_placement
from cases import make_experts, normal, router_logits
from checks import same_bits

MIXED = Placement(((6, 1), (0, 7), (3, 2), (5, 4)))


def router(x, weight, bias):
    """Logits to a multiple of 1/16, the same in whatever order its rows stand."""
    logits = (x.double() @ weight.double().T + bias.double()) * 4
    return logits.round().float() / 4 + torch.linspace(0, 0.2, 8)[rank_of(weight)]


def rank_of(weight):
    """A number for each expert that its row carries along, so that no two logits are equal."""
    return weight[:, 0].argsort().argsort()


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
@pytest.mark.parametrize(
    ("gating", "capacity", "exact"),
    [
        (cm.Gating(3, "sigmoid", "topk"), cm.Capacity(1.0), True),
        (cm.Gating(1, "sigmoid"), None, True),
        (cm.Gating(2, renormalize="topk"), cm.Capacity(0.7, policy="keep_first"), False),
        (cm.Gating(3), cm.Capacity(1.0, expand="rank", extra=2), False),
    ],
)
def test_renumbering_changes_no_output(layout, gating, capacity, exact):
    """A softmax adds up E terms in another order, which may show in its last bit."""
    experts = make_experts(8, 24, 16, layout=layout, bias=True)
    x, weight, bias = normal((70, 24)), normal((8, 24), seed=5), normal((8,), seed=6)
    select = normal((8,), seed=7)
    placed = apply_placement(experts, weight, MIXED, router_bias=bias, selection_bias=select)
    logits, moved = router(x, weight, bias), router(x, placed.router_weight, placed.router_bias)
    assert placed.expert_ids.tolist() == [6, 1, 0, 7, 3, 2, 5, 4]
    assert moved.equal(logits[:, placed.expert_ids])
    before = cm.route(logits, gating, capacity, selection_bias=select)
    after = cm.route(moved, gating, capacity, selection_bias=placed.selection_bias)
    named = torch.cat([placed.expert_ids, torch.tensor([8])])
    assert named[after.expert_ids].equal(before.expert_ids.long())
    assert after.tokens_per_expert.equal(before.tokens_per_expert[placed.expert_ids])
    out = cm.moe(x, logits, experts, gating, capacity, selection_bias=select)
    again = cm.moe(x, moved, placed.experts, gating, capacity, selection_bias=placed.selection_bias)
    assert out.abs().max() > 0.1
    if exact:
        assert same_bits(again, out)
    torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-6)


def test_each_rank_holds_a_range():
    experts = make_experts(5, 8, 4)
    old = Placement(((4, 0), (), (2, 1, 3)))
    placed = apply_placement(experts, torch.eye(5), old)
    assert placed.placement == Placement(((0, 1), (), (2, 3, 4)))
    for new, held in zip(placed.placement.experts_of_rank, old.experts_of_rank, strict=True):
        for number, expert in zip(new, held, strict=True):
            assert placed.experts.down_proj[number].equal(experts.down_proj[expert])
            assert placed.router_weight[number].argmax() == expert
    assert placed.router_bias is placed.selection_bias is None


def test_groups_stay_together():
    experts, weight = make_experts(8, 8, 4), torch.eye(8)
    with pytest.raises(ValueError, match=r"keep each of the 2 groups together.*\[0, 1\]"):
        apply_placement(experts, weight, MIXED, num_groups=2)
    kept = Placement(((5, 4), (7, 6), (0, 2), (3, 1)))
    placed = apply_placement(experts, weight, kept, num_groups=2)
    gating = cm.Gating(2, "sigmoid", "topk", num_groups=2)
    x, logits = normal((30, 8)), router_logits(30, 8, "distinct")
    out = cm.moe(x, logits[:, placed.expert_ids], placed.experts, gating)
    assert same_bits(out, cm.moe(x, logits, experts, gating))


def test_apply_refuses():
    experts, weight = make_experts(3, 8, 4), torch.eye(3)
    even = Placement.even(3, 2)
    with pytest.raises(ValueError, match="got replicas"):
        apply_placement(experts, weight, Placement(((0, 1), (2, 0))))
    with pytest.raises(ValueError, match="placement must have 3 experts"):
        apply_placement(experts, weight, Placement.even(4, 2))
    with pytest.raises(ValueError, match=r"router_weight must have 3 rows, got \[4, 4\]"):
        apply_placement(experts, torch.eye(4), even)
    with pytest.raises(ValueError, match=r"selection_bias must have 3 rows, got \[2\]"):
        apply_placement(experts, weight, even, selection_bias=torch.zeros(2))
    with pytest.raises(ValueError, match="num_groups must divide 3 experts, got 2"):
        apply_placement(experts, weight, even, num_groups=2)
    with pytest.raises(TypeError, match="experts must be"):
        apply_placement(3, weight, even)
    packed = experts.pack()
    if type(packed) is not cm.Experts:
        with pytest.raises(TypeError, match="place them, then pack"):
            apply_placement(packed, weight, even)
