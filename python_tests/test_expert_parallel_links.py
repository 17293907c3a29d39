"""Clusters onto devices: against brute force over alike and unlike links."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch

from capmoe_kernels.distributed import place_experts
from placement_cases import copies_of, needs_scipy, solvers


def by_force(traffic, bandwidth, devices):
    """The least sum of slowest links over all orders of every layer's clusters."""

    def time(step, before, after):
        return max(
            (
                step[c1][c2] / bandwidth[before[c1]][after[c2]]
                for c1 in range(devices)
                for c2 in range(devices)
                if before[c1] != after[c2]
            ),
            default=0.0,
        )

    orders = list(permutations(range(devices)))
    best = dict.fromkeys(orders, 0.0)
    for step in traffic:
        best = {
            after: min(best[before] + time(step, before, after) for before in orders)
            for after in orders
        }
    return min(best.values())


def traffic_of(plan, transitions):
    """Tokens between the devices' clusters, from the plan's own placements."""
    tables = []
    for step, (before, after) in zip(transitions, pairwise(plan.placements), strict=True):
        copies = copies_of(before), copies_of(after)
        tables.append(
            [
                [
                    sum(step[a][b] / copies[0][a] / copies[1][b] for a in here for b in there)
                    for there in after.experts_of_rank
                ]
                for here in before.experts_of_rank
            ]
        )
    return tables


@solvers
@pytest.mark.parametrize("links", ["alike", "two_nodes", "random"])
@pytest.mark.parametrize(("devices", "layers", "replicate"), [(1, 3, 0), (2, 4, 1), (4, 3, 0)])
def test_devices_against_brute_force(devices, layers, replicate, links, solver):
    rng = torch.Generator().manual_seed(devices)
    load = torch.randint(1, 50, (layers, 8), generator=rng)
    transitions = torch.randint(0, 40, (layers - 1, 8, 8), generator=rng).double()
    bandwidth = {
        "alike": None,
        "two_nodes": torch.ones(4, 4)
        + 9 * torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1),
        "random": torch.rand(4, 4, generator=rng) + 0.2,
    }[links]
    if bandwidth is not None:
        bandwidth = bandwidth[:devices, :devices].double()
    plan = place_experts(
        load,
        transitions,
        num_devices=devices,
        bandwidth=bandwidth,
        replicate=replicate,
        gap=0,
        solver=solver,
        time_limit=60,
    )
    speeds = [[1.0] * devices] * devices if bandwidth is None else bandwidth.tolist()
    traffic = traffic_of(plan, transitions.tolist())
    best = by_force(traffic, speeds, devices)
    stay = list(range(devices))
    claimed = sum(
        max(
            (step[a][b] / speeds[a][b] for a in stay for b in stay if a != b),
            default=0.0,
        )
        for step in traffic
    )
    assert plan.link_time == pytest.approx(claimed)
    assert plan.link_bound <= best * (1 + 1e-9)
    assert best <= plan.link_time * (1 + 1e-9)
    assert plan.link_time - best <= (plan.link_gap + 1e-9) * best
    if solver == "ilp" or links == "alike":
        assert plan.link_time == pytest.approx(best)
        assert plan.link_gap <= 1e-5
    if links == "alike" or devices == 1:
        assert plan.link_solver == "exact"


@needs_scipy
@pytest.mark.parametrize("seed", [4, 16, 21])
def test_ilp_beats_greedy_on_unlike_links(seed):
    rng = torch.Generator().manual_seed(seed)
    load = torch.randint(1, 50, (3, 6), generator=rng)
    transitions = torch.randint(0, 40, (2, 6, 6), generator=rng).double()
    options = {"num_devices": 3, "bandwidth": torch.rand(3, 3, generator=rng).double() + 0.1}
    near = place_experts(load, transitions, gap=0, solver="greedy", **options)
    exact = place_experts(load, transitions, gap=0, **options)
    best = by_force(traffic_of(exact, transitions.tolist()), options["bandwidth"].tolist(), 3)
    assert (near.link_solver, exact.link_solver) == ("greedy", "ilp")
    assert exact.link_time == pytest.approx(best)
    assert exact.link_bound == pytest.approx(best, rel=1e-5)
    assert near.link_time > 1.01 * best > 1.01 * near.link_bound


def test_tokens_that_stay_cross_no_link():
    """Experts of a layer all hand on to one partner each: the partners share a device."""
    partner = [3, 5, 0, 2, 7, 1, 4, 6]
    steps = torch.zeros(1, 8, 8)
    for expert, other in enumerate(partner):
        steps[0, expert, other] = 10
    load = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8], [0.0] * 8])
    load[1, partner] = load[0]
    plan = place_experts(load, steps, num_devices=4, solver="greedy")
    first, second = plan.placements
    assert second.experts_of_rank == tuple(
        tuple(sorted(partner[expert] for expert in held)) for held in first.experts_of_rank
    )
    assert (plan.link_time, plan.link_gap) == (0, 0)
