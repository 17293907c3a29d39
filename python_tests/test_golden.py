"""G1: the paper's Figure 3, two devices of four tokens, every number of the specification."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm

SCORES = [
    [0.50, 0.08, 0.02, 0.40],
    [0.30, 0.20, 0.45, 0.05],
    [0.15, 0.55, 0.05, 0.25],
    [0.48, 0.06, 0.04, 0.42],
    [0.52, 0.10, 0.08, 0.30],
    [0.08, 0.44, 0.13, 0.35],
    [0.28, 0.50, 0.12, 0.10],
    [0.45, 0.07, 0.05, 0.43],
]
TD_KEPT = {0: {0, 3, 4, 7}, 1: {2, 5, 6}, 2: {1}, 3: {0, 3, 5, 7}}
ED_KEPT = {0: {0, 3, 4, 7}, 1: {1, 2, 5, 6}, 2: {1, 5, 6}, 3: {0, 3, 5, 7}}
TD_DROPPED = {(1, 0), (2, 3), (4, 3), (6, 0)}


def route_figure_3(renormalize="none", **options):
    """[(token, expert)] -> weight, over both devices; each bounds the load of its own tokens."""
    out = {}
    routings = []
    for device in (0, 1):
        logits = torch.tensor(SCORES[4 * device : 4 * device + 4]).log()
        mine = {
            name: value(device) if callable(value) else value for name, value in options.items()
        }
        gating = cm.Gating(top_k=2, renormalize=renormalize)
        routing = cm.route(logits, gating, cm.Capacity(factor=1.0, **mine))
        routings.append(routing)
        for t, row in enumerate(routing.rows.tolist()):
            for j, at in enumerate(row):
                if at >= 0:
                    pair = (4 * device + t, routing.expert_ids[t, j].item())
                    out[pair] = routing.weights[t, j].item()
    return out, routings


def by_expert(pairs):
    return {e: {t for t, other in pairs if other == e} for e in range(4)}


EXPAND = {"expand": "local", "local_experts": lambda device: (2 * device, 2 * device + 2)}


def test_item_19_token_drop(backend):
    kept, routings = route_figure_3()
    assert by_expert(kept) == TD_KEPT
    demand = sum(routing.demand_per_expert for routing in routings)
    assert demand.tolist() == [6, 3, 1, 6]
    assert routings[0].demand_per_expert.tolist() == [3, 1, 1, 3]
    load = sum(routing.tokens_per_expert for routing in routings)
    assert load.tolist() == [4, 3, 1, 4]
    assert demand.max().item() / load.max().item() == 1.5
    assert (demand.sum() - load.sum()).item() / demand.sum().item() == 0.25


def test_item_19_who_is_dropped(backend):
    kept, _ = route_figure_3()
    asked = {
        (t, e) for t, row in enumerate(SCORES) for e in sorted(range(4), key=lambda e: -row[e])[:2]
    }
    assert asked - set(kept) == TD_DROPPED


@pytest.mark.parametrize("priority", ["score", "topk_first"])
def test_item_19_expanded_drop(backend, priority):
    kept, _ = route_figure_3(expand_priority=priority, **EXPAND)
    assert by_expert(kept) == ED_KEPT


@pytest.mark.parametrize(
    ("renormalize", "td", "ed", "t2"),
    [
        ("none", {2: 0.45}, {2: 0.45, 1: 0.20}, 0.55),
        ("topk", {2: 0.60}, {2: 0.60, 1: 0.2 / 0.75}, 0.6875),
        ("kept", {2: 1.0}, {2: 0.45 / 0.65, 1: 0.20 / 0.65}, 1.0),
    ],
)
def test_item_19_weights(backend, renormalize, td, ed, t2):
    kept, _ = route_figure_3(renormalize)
    assert {e: w for (t, e), w in kept.items() if t == 1} == pytest.approx(td, rel=1e-6)
    assert {e: w for (t, e), w in kept.items() if t == 2} == pytest.approx({1: t2}, rel=1e-6)
    kept, _ = route_figure_3(renormalize, **EXPAND)
    assert {e: w for (t, e), w in kept.items() if t == 1} == pytest.approx(ed, rel=1e-6)


def test_item_19_the_printed_digits(backend):
    kept, _ = route_figure_3("topk", **EXPAND)
    assert round(kept[1, 1], 4) == 0.2667
    kept, _ = route_figure_3("kept", **EXPAND)
    assert (round(kept[1, 2], 4), round(kept[1, 1], 4)) == (0.6923, 0.3077)


def test_item_19_device_level(backend):
    """n_l * C = 4 pairs per source and destination: one drop in all instead of four."""
    kept, routings = route_figure_3(scope="device", experts_per_device=2)
    source0, source1 = (
        routing.tokens_per_expert.view(2, 2).sum(1).tolist() for routing in routings
    )
    assert source0 == [4, 4]
    assert source1 == [4, 3]
    asked = sum(routing.demand_per_expert.sum().item() for routing in routings)
    assert asked - len(kept) == 1
    assert (6, 0) not in kept
