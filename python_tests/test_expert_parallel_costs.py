"""The cost model of a step: by hand, against slow loops, and its fit to a measurement."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import capmoe_kernels as cm
from bench import ep_simulation
from capmoe_kernels.distributed import (
    Costs,
    Placement,
    calibrate,
    simulate_loads,
    step_seconds,
)
from capmoe_kernels.distributed.calibrate import Sample, fit

COSTS = Costs(
    tile=3.0,
    rows_per_tile=4,
    expert=0.5,
    weights=5.0,
    fixed=7.0,
    token=0.25,
    wire_row=0.125,
    wire_fixed=2.0,
)


def test_a_step_by_hand():
    """Experts 0, 1 on rank 0, expert 2 on rank 1; rows of rank 0 and rank 1."""
    rows = torch.tensor([[[3, 0, 2], [6, 0, 1]]])
    step = step_seconds(rows, Placement.even(3, 2), COSTS, torch.tensor([[5, 8]]))
    # Rank 0 has 9 rows of expert 0: 3 tiles. Rank 1 has 3 rows: 1 tile, less than its weights.
    assert step.devices.tolist() == [[7 + 9 + 0.5, 7 + 5]]
    assert step.rest.tolist() == [8 * 0.25]
    # Rank 0 sends 2 rows away and 6 back, rank 1 the reverse.
    assert step.wire.tolist() == [2 + 8 * 0.125]
    assert step.total.tolist() == [16.5 + 2 + 3]


def slow_step(rows, placement, costs, tokens):
    """The formula of costs.py in plain loops, without replicas."""
    totals = []
    for sources, counts in zip(rows.tolist(), tokens.tolist(), strict=True):
        devices, sent = [], [0] * placement.num_ranks
        for device, experts in enumerate(placement.experts_of_rank):
            compute = read = 0.0
            for expert in experts:
                run = sum(source[expert] for source in sources)
                compute += math.ceil(run / costs.rows_per_tile) * costs.tile
                compute += costs.expert if run else 0
                read += costs.weights if run else 0
                for rank, source in enumerate(sources):
                    if rank != device:
                        sent[rank] += source[expert]
                        sent[device] += source[expert]
            devices.append(costs.fixed + max(compute, read))
        rest = max(counts) * costs.token
        totals.append(max(devices) + rest + costs.wire_fixed + max(sent) * costs.wire_row)
    return totals


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("tile", [1, 16])
def test_slow_loops_agree(devices, tile):
    loads = simulate_loads(13, 2, devices, 40, 1.2, steps=3, seed=devices)
    placement = Placement.even(13, devices)
    costs = replace(COSTS, rows_per_tile=tile)
    tokens = torch.arange(3 * devices).view(3, devices)
    expected = slow_step(loads, placement, costs, tokens)
    assert step_seconds(loads, placement, costs, tokens).total.tolist() == pytest.approx(expected)


def test_a_replicated_expert_costs_both_ranks():
    rows = torch.tensor([[[4], [4]]])
    costs = Costs(tile=1.0, expert=10.0)
    assert step_seconds(rows, Placement(((0,), (0,))), costs).devices.tolist() == [[14.0, 14.0]]
    assert step_seconds(rows, Placement(((0,), ())), costs).devices.tolist() == [[18.0, 0.0]]


def test_padding_on_the_wire_replaces_the_live_rows():
    rows = torch.tensor([[[1, 1], [1, 1]]])
    costs = Costs(tile=0.0, wire_row=1.0)
    placement = Placement.even(2, 2)
    assert step_seconds(rows, placement, costs).wire.tolist() == [2.0]
    assert step_seconds(rows, placement, costs, sent=torch.tensor([64])).wire.tolist() == [64.0]
    assert step_seconds(rows.sum(1, keepdim=True), placement, costs).wire.tolist() == [0.0]


def test_speed_up_stays_below_the_bound_and_reaches_it_where_rows_are_all():
    loads = simulate_loads(16, 2, 8, 256, 1.5, steps=2)
    placement, half = Placement.even(16, 8), loads.clamp(max=40)
    busiest = [
        each.sum(1) @ _members(placement).double() for each in (loads.double(), half.double())
    ]
    bound = busiest[0].amax(1).sum() / busiest[1].amax(1).sum()

    def speed(costs):
        before, after = (step_seconds(rows, placement, costs).total.sum() for rows in (loads, half))
        return float(before / after)

    assert speed(Costs(tile=1.0)) == pytest.approx(float(bound))
    fixed = [speed(Costs(tile=1.0, fixed=seconds)) for seconds in (0.0, 50.0, 500.0, 5e6)]
    assert fixed == sorted(fixed, reverse=True)
    assert fixed[-1] == pytest.approx(1.0, abs=1e-3)
    assert speed(Costs(tile=1.0, weights=1e6)) == 1.0  # reading weights is all: nothing is gained


def _members(placement):
    """[E, D]: 1 where the device holds the expert."""
    out = torch.zeros(placement.num_experts, placement.num_ranks)
    for device, experts in enumerate(placement.experts_of_rank):
        out[list(experts), device] = 1
    return out


def test_fit_finds_the_costs_that_samples_were_made_of():
    cases = [(experts, rows) for experts in (1, 4, 8) for rows in (1, 16, 256)]
    samples = [Sample(e, n, 2e-5 + e * (3e-6 + n * 4e-7)) for e, n in cases]
    found = fit(samples)
    assert found.worst_error < 1e-9
    assert (found.costs.fixed, found.costs.expert, found.costs.tile) == pytest.approx(
        (2e-5, 3e-6, 4e-7)
    )


def test_fit_gives_no_negative_costs():
    """Faster per expert the more there are: least squares alone would make ``fixed`` of it all."""
    samples = [Sample(e, n, (e * n) ** 0.9 * 1e-6) for e in (1, 4, 8) for n in (1, 16, 256)]
    samples += [Sample(8, 1, 1e-7)]
    found = fit(samples)
    assert min(found.costs.fixed, found.costs.expert, found.costs.tile) >= 0
    assert found.costs.tile > 0
    assert found.worst_error > 0.1


def make_experts(num_experts=4, hidden=64, intermediate=96):
    return cm.Experts(
        torch.randn(num_experts, 2 * intermediate, hidden),
        torch.randn(num_experts, hidden, intermediate),
    )


def test_calibrate_measures_rows():
    """A row of four times the work costs more, and every case was measured."""
    small = calibrate(make_experts().pack(), rows=(1, 32, 128), seconds=0.05)
    large = calibrate(make_experts(4, 256, 384).pack(), rows=(1, 32, 128), seconds=0.05)
    assert [(s.experts, s.rows) for s in small.samples] == [
        (experts, rows) for experts in (1, 2, 4) for rows in (1, 32, 128)
    ]
    assert all(sample.seconds > 0 for sample in small.samples)
    assert large.costs.tile > 2 * small.costs.tile > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: calibrate("experts"), TypeError, "experts must be capmoe_kernels.Experts"),
        (lambda: calibrate(make_experts(), rows=(4, 4)), ValueError, "two different numbers"),
        (lambda: calibrate(make_experts(), rows=(0, 4)), ValueError, "rows must be >= 1"),
        (lambda: Costs(tile=-1.0), ValueError, "Costs.tile must be >= 0"),
        (lambda: Costs(tile=1.0, wire_row=math.nan), ValueError, "Costs.wire_row must be >= 0"),
        (lambda: Costs(tile=1.0, rows_per_tile=0), ValueError, "Costs.rows_per_tile must be >= 1"),
    ],
)
def test_refused_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_h100_s_costs_are_near_the_times_they_come_from():
    """docs/gpu.md: OLMoE's grouped_mlp at T = 64 and 16384, and a size that was not used, 4096."""
    for tokens, microseconds in ((64, 270), (4096, 767), (16384, 3084)):
        rows = torch.full((1, 1, 64), tokens * 8 // 64)
        costs = replace(ep_simulation.H100, fixed=0.0)
        taken = 1e6 * float(step_seconds(rows, Placement.even(64, 1), costs).total)
        assert taken == pytest.approx(microseconds, rel=0.1)


def test_simulation_prints_every_line_as_simulated(capsys):
    tiny = ["--tokens", "32", "--draws", "1", "--skew", "1", "--seconds", "0.01"]
    ep_simulation.main(tiny)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("SIMULATION") for line in lines) == 3
    for name, model in ep_simulation.MODELS.items():
        rows = [line for line in lines if line.startswith(f"| {name} ") and "paper" not in line]
        assert [int(row.split("|")[2]) for row in rows] == list(model.devices)
    (paper,) = (line for line in lines if line.startswith("| Mixtral") and "paper" in line)
    assert "1.44 / 1.89 / 2.55" in paper


def test_simulated_speed_ups_are_below_their_bound():
    model = ep_simulation.MODELS["OLMoE"]
    loads = simulate_loads(model.experts, model.top_k, 8, 128, 1.0, steps=2)
    for expand in ("none", "local"):
        cell = ep_simulation.cell(model, loads, 1.0, expand, [Costs(tile=1.0, fixed=9.0)])
        assert 1 < cell.speeds[0] < cell.report.bound
