"""The straggler report: hand-computed cases, a slow count, and what must hold for any loads."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capmoe_kernels as cm
from capmoe_kernels.distributed import Placement, simulate_loads, straggler
from capmoe_kernels.distributed.straggler_devices import rows_by_device
from capmoe_kernels.distributed.wire import Wire

# Figure 3 of arXiv 2503.05066: two devices of four tokens each, four experts, top-2, C = 2.
FIGURE_3 = [
    [[50, 8, 2, 40], [30, 20, 45, 5], [15, 55, 5, 25], [48, 6, 4, 42]],
    [[52, 10, 8, 30], [8, 44, 13, 35], [28, 50, 12, 10], [45, 7, 5, 43]],
]
FIGURE_3_LOADS = [[3, 1, 1, 3], [3, 2, 0, 3]]
TOKEN_DROP = cm.Capacity(factor=1.0)
EXPANDED_DROP = cm.Capacity(factor=1.0, expand="local", local_experts=(0, 0))


def routings(expand: str):
    out = []
    for rank, scores in enumerate(FIGURE_3):
        local = (2 * rank, 2 * rank + 2) if expand == "local" else None
        capacity = cm.Capacity(factor=1.0, expand=expand, local_experts=local)
        out.append(cm.route(torch.tensor(scores).float().log(), cm.Gating(top_k=2), capacity))
    return out


@pytest.mark.parametrize("given_as", ["routings", "loads"])
def test_figure_3_token_drop(given_as):
    """E0 4, E1 3, E2 1, E3 4 remain of 6, 3, 1, 6; the device of E0 and E1 has 9, then 7."""
    if given_as == "routings":
        report = straggler(routings("none"), 2, hidden_size=8)
    else:
        report = straggler(FIGURE_3_LOADS, 2, capacity=TOKEN_DROP, hidden_size=8)
    assert (report.before.rows, report.after.rows, report.dropped) == (16, 12, 4)
    assert (report.before.busiest_expert, report.after.busiest_expert) == (6, 4)
    assert (report.before.busiest_device, report.after.busiest_device) == (9, 7)
    assert report.dropped_share == 0.25
    assert report.bound == 9 / 7
    assert report.expert_bound == 1.5
    assert (report.expert_before, report.device_before) == (6 / 4, 9 / 8)
    assert (report.expert_after, report.device_after) == (4 / 4, 7 / 8)
    # Rank 0 sends 1 + 3 rows away and 3 + 2 back; after: 1 + 2 and 2 + 2. Rank 1 the reverse.
    assert report.before.wire == (9, 9)
    assert report.after.wire == (7, 7)
    assert report.wire_bytes(report.after) == (7 * 16, 7 * 16)
    assert report.busiest_wire_bytes(report.before) == 9 * 16


@pytest.mark.parametrize("given_as", ["routings", "loads"])
def test_figure_3_expanded_drop(given_as):
    """E1 takes T1, and E2 takes T5 and T6: three rows more, none of them on the wire."""
    if given_as == "routings":
        report = straggler(routings("local"), 2)
    else:
        report = straggler(FIGURE_3_LOADS, 2, capacity=EXPANDED_DROP, top_k=2)
    assert (report.after.rows, report.extra, report.extra_wire) == (15, 3, 0)
    assert (report.after.busiest_expert, report.after.busiest_device) == (4, 8)
    assert report.after.wire == (7, 7)
    assert report.dropped == 4
    assert report.exact == (given_as == "routings")
    assert report.wire_bytes(report.after) is None  # no hidden size was given


def test_expanded_drop_can_make_the_busiest_device_busier():
    """Even loads, factor 2: nothing is dropped, and every rank fills its own experts to C = 4."""
    capacity = cm.Capacity(factor=2.0, expand="local", local_experts=(0, 0))
    report = straggler([[2, 2], [2, 2]], 2, capacity=capacity, top_k=1)
    assert (report.dropped, report.extra, report.bound) == (0, 4, 4 / 6)


def test_topk_first_says_exactly_what_is_extra():
    capacity = cm.Capacity(
        factor=1.0, expand="local", local_experts=(0, 0), expand_priority="topk_first"
    )
    report = straggler([[3, 1], [2, 2]], 2, capacity=capacity, top_k=1)
    # C = 2 and T = 4: rank 0 keeps 2 of 3 at its own expert, so nothing is extra there.
    assert (report.exact, report.extra, report.dropped) == (True, 0, 1)


def test_replicas_share_and_the_own_copy_comes_first():
    """Expert 0 stands on ranks 0 and 2: of rank 1's five rows for it rank 2 gets the first."""
    placement = Placement(((0,), (1,), (0, 2)))
    report = straggler([[7, 0, 1], [5, 2, 0], [4, 0, 3]], 3, placement)
    # Rank 0 runs 7 + 2 rows, rank 1 runs 2, rank 2 runs 3 + 4 + 1 + 3.
    assert report.before.busiest_device == 11
    assert report.before.busiest_expert == 16
    # Dispatched: one row by rank 0; three and two by rank 1. The same rows come back.
    assert report.before.wire == (1 + 2, 5, 1 + 3)


@pytest.mark.parametrize(
    "ranks", [((0, 1), (2, 3), (4,)), ((0,), (1, 0, 4), (2, 3, 0)), ((0, 1, 2, 3, 4), (), (3, 4))]
)
def test_rows_go_where_expert_parallel_sends_them(ranks):
    placement = Placement(ranks)
    loads = torch.randint(0, 30, (3, 5), generator=torch.Generator().manual_seed(4))
    sent = torch.stack([Wire(placement, rank).block_counts(loads[rank].int()) for rank in range(3)])
    expected = sent.view(3, 3, -1).sum(2)  # [source, device]
    assert torch.equal(rows_by_device(loads[None], placement)[0], expected.long())


def test_uneven_placement_and_unknown_source_ranks():
    report = straggler([10, 1, 1, 1, 7], 2, capacity=cm.Capacity(factor=1.0), hidden_size=4)
    # C = ceil(20 / 5) = 4; ranks hold experts 0-2 and 3-4.
    assert (report.before.busiest_device, report.after.busiest_device) == (12, 6)
    assert (report.after.rows, report.after.wire, report.after.busiest_wire) == (11, None, None)
    assert report.wire_bytes(report.after) is None
    assert report.busiest_wire_bytes(report.after) is None


def test_steps_are_summed_and_each_has_its_own_busiest():
    loads = torch.tensor([[8, 0], [1, 7]])[:, None]
    report = straggler(loads, 2, capacity=cm.Capacity(limit=5))
    assert (report.steps, report.before.busiest_device, report.after.busiest_device) == (2, 15, 10)
    assert report.bound == 1.5


def test_nothing_asked_or_nothing_left_has_no_bound():
    report = straggler([0, 0], 2)
    assert (report.bound, report.expert_before, report.dropped_share) == (None, None, 0.0)
    report = straggler([3, 1], 2, capacity=cm.Capacity(limit=0))
    assert (report.bound, report.expert_bound, report.dropped_share) == (None, None, 1.0)


def test_device_scope_and_rank_expansion_are_counted_from_routings():
    logits = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    device = cm.Capacity(factor=0.5, scope="device", experts_per_device=4)
    routed = [cm.route(each, cm.Gating(top_k=2), device) for each in logits]
    report = straggler(routed, 2)
    assert report.after.busiest_device == 2 * 4 * 5 < report.before.busiest_device
    ranked = cm.Capacity(factor=2.0, expand="rank", extra=2)
    routed = [cm.route(each, cm.Gating(top_k=2), ranked) for each in logits]
    report = straggler(routed, 2)
    assert report.extra == sum(int((r.rows[:, 2:] >= 0).sum()) for r in routed) > 0
    assert report.extra_wire > 0  # next-best experts are anywhere


@pytest.mark.parametrize("expand", ["none", "local"])
@pytest.mark.parametrize("policy", ["score", "keep_last"])
def test_a_count_of_every_kept_pair_agrees(expand, policy):
    """Pair by pair from the routing's rows, and from the demand alone."""
    devices, num_experts, top_k = 3, 10, 3
    random = torch.Generator().manual_seed(1)
    placement = Placement.even(num_experts, devices)
    home = {e: d for d, experts in enumerate(placement.experts_of_rank) for e in experts}
    routed, loads, sent = [], [0] * devices, [0] * devices
    for rank, tokens in enumerate((37, 5, 20)):
        own = placement.experts_of_rank[rank]
        local = (own[0], own[-1] + 1) if expand == "local" else None
        capacity = cm.Capacity(factor=1.2, policy=policy, expand=expand, local_experts=local)
        logits = torch.randn(tokens, num_experts, generator=random) + torch.linspace(2, 0, 10)
        routed.append(cm.route(logits, cm.Gating(top_k=top_k), capacity))
        for ids, rows in zip(routed[-1].expert_ids.tolist(), routed[-1].rows.tolist(), strict=True):
            for expert, row in zip(ids, rows, strict=True):
                if row >= 0:
                    loads[home[expert]] += 1
                    if home[expert] != rank:
                        sent[rank] += 1
                        sent[home[expert]] += 1
    report = straggler(routed, devices)
    assert report.after.busiest_device == max(loads)
    assert report.after.wire == tuple(sent)
    asked = torch.stack([routing.demand_per_expert for routing in routed])
    limit = cm.Capacity(
        factor=1.2,
        policy=policy,
        expand=expand,
        local_experts=(0, 0) if expand == "local" else None,
    )
    counted = straggler(asked, devices, capacity=limit, top_k=top_k)
    assert (counted.before, counted.after) == (report.before, report.after)
    assert counted.exact is (expand == "none")
    assert counted.dropped <= report.dropped


LOADS = st.integers(1, 4).flatmap(
    lambda ranks: st.lists(
        st.lists(st.integers(0, 60), min_size=8, max_size=8), min_size=ranks, max_size=ranks
    )
)


@settings(deadline=None, max_examples=60)
@given(LOADS, st.sampled_from([3.0, 2.0, 1.5, 1.0, 0.5]))
def test_the_formula_for_any_loads(loads, factor):
    """Token Drop, by loops: max over ranks of the sums of min(n, C), C per source rank."""
    devices = len(loads)
    report = straggler(loads, devices, capacity=cm.Capacity(factor=factor))
    homes = Placement.even(8, devices).experts_of_rank
    limits = [ceil(factor * sum(rank) / 8) for rank in loads]
    kept = [[min(n, c) for n in rank] for rank, c in zip(loads, limits, strict=True)]

    def busiest(counts):
        return max(sum(rank[e] for rank in counts for e in home) for home in homes)

    assert report.before.busiest_device == busiest(loads)
    assert report.after.busiest_device == busiest(kept)
    assert report.dropped == sum(map(sum, loads)) - sum(map(sum, kept))
    if report.bound is not None:
        assert report.bound >= 1


@pytest.mark.parametrize("skew", [0.5, 1.0, 1.5])
def test_more_bound_for_less_factor_less_for_more_experts_a_device(skew):
    """Also: Expanded Drop runs no fewer rows, and sends as many, as Token Drop."""
    bounds = {}
    for devices in (16, 8, 4):
        loads = simulate_loads(16, 2, devices, 2048 // devices, skew, steps=6, seed=3)
        for factor in (2.0, 1.5, 1.0, 0.75):
            dropped = straggler(loads, devices, capacity=cm.Capacity(factor=factor))
            local = cm.Capacity(factor=factor, expand="local", local_experts=(0, 0))
            expanded = straggler(loads, devices, capacity=local, top_k=2)
            assert expanded.after.rows >= dropped.after.rows
            assert expanded.after.wire == dropped.after.wire
            assert expanded.bound <= dropped.bound
            bounds[devices, factor] = dropped.bound
    for devices in (16, 8, 4):
        falling = [bounds[devices, factor] for factor in (2.0, 1.5, 1.0, 0.75)]
        assert falling == sorted(falling)
        assert falling[0] < falling[-1]
    for factor in (1.5, 1.0):
        assert bounds[16, factor] > bounds[8, factor] > bounds[4, factor] > 1
