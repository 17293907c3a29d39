"""Expert parallelism gives what one process gives with the same capacity of each rank."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.distributed import Placement
from cases import brief
from expert_parallel import Layer, same_integers
from ranks import run_ranks

LOCAL = {"expand": "local", "local_experts": (0, 1)}  # replaced by each rank's own

CAPACITIES = [
    cm.Capacity(),
    cm.Capacity(factor=float("inf")),
    cm.Capacity(factor=1.0),
    cm.Capacity(factor=0.0),
    cm.Capacity(factor=4.5),
    cm.Capacity(factor=9.0),
    cm.Capacity(factor=0.7, rounding="floor"),
    cm.Capacity(limit=3),
    cm.Capacity(limit=0),
    cm.Capacity(factor=1.0, policy="keep_first"),
    cm.Capacity(factor=1.0, policy="keep_last"),
    cm.Capacity(factor=1.0, policy="random", seed=7),
    cm.Capacity(factor=1.0, drop_score="weight"),
    cm.Capacity(factor=1.0, **LOCAL),
    cm.Capacity(factor=1.0, expand_priority="topk_first", **LOCAL),
    cm.Capacity(factor=1.0, expand="rank", extra=2),
    cm.Capacity(factor=1.0, expand="rank", extra=2, max_experts_per_token=2),
    cm.Capacity(factor=1.0, reroute_rounds=3),
    cm.Capacity(factor=1.0, scope="device", experts_per_device=2),
    cm.Capacity(factor=1.0, scope="device", experts_per_device=2, **LOCAL),
]
TD = cm.Capacity(factor=1.25)
REPLICAS = Placement(((0, 1), (2, 3, 0), (5, 4, 0), (6, 7, 4)))
ORDER = Placement(((7, 2), (0,), (5, 1, 6), (3, 4)))


def four_ranks():
    """Layers by name; each once dropless or fixed, with what their name says."""
    layers = {brief(capacity): Layer(capacity) for capacity in CAPACITIES}
    for kind, capacity in (("fixed", TD), ("counted", cm.Capacity())):
        layers |= {
            f"{kind}, all masks": Layer(
                capacity, options=("token_mask", "token_priority", "selection_bias")
            ),
            f"{kind}, E=7": Layer(capacity, E=7),
            f"{kind}, E=3: a rank has no expert": Layer(capacity, E=3),
            f"{kind}, replicas": Layer(capacity, placement=REPLICAS, style="one_expert"),
            f"{kind}, order": Layer(capacity, placement=ORDER),
            f"{kind}, order, packed": Layer(capacity, placement=ORDER, packed=True, bias=True),
            f"{kind}, bfloat16": Layer(capacity, dtype=torch.bfloat16, H=33, F=20),
            f"{kind}, bfloat16, packed": Layer(capacity, dtype=torch.bfloat16, packed=True),
            f"{kind}, float16, replicas": Layer(capacity, dtype=torch.float16, placement=REPLICAS),
            f"{kind}, one number a row": Layer(capacity, H=1, F=1, dtype=torch.bfloat16),
            f"{kind}, no tokens": Layer(capacity, tokens=(0, 0, 0, 0)),
            f"{kind}, one rank": Layer(capacity, tokens=(0, 31, 0, 0)),
        }
    return layers


def two_ranks():
    layers = {brief(capacity): Layer(capacity, tokens=(21, 16)) for capacity in CAPACITIES}
    layers |= {
        f"counted, {brief(capacity)}": Layer(capacity, tokens=(21, 16), exchange="counted")
        for capacity in CAPACITIES
    }
    everywhere = Placement(((0, 1, 2, 3, 4), (3, 4, 5, 6, 7)))
    for kind, capacity in (("fixed", TD), ("counted", cm.Capacity())):
        layers[f"{kind}, replicas"] = Layer(capacity, tokens=(21, 16), placement=everywhere)
        layers[f"{kind}, E=1"] = Layer(
            capacity, tokens=(5, 6), E=1, gating=cm.Gating(top_k=1, renormalize="kept")
        )
    layers["Expanded Drop, replicas"] = Layer(
        cm.Capacity(factor=1.0, **LOCAL), tokens=(21, 16), placement=everywhere
    )
    return layers


def check_all(rank, layers):
    for name, layer in layers.items():
        try:
            check(rank, layer)
        except Exception as error:
            raise AssertionError(name) from error


def check(rank, layer):
    ep = layer.build()
    routing = ep.route(layer.logits(rank), layer.gating, **layer.more(rank))
    same_integers(routing, layer.routing(rank))
    dispatched = ep.dispatch(layer.hidden(rank), routing)
    check_received(rank, layer, dispatched)
    local = layer.local_experts(rank)
    out = ep.combine(ep.run_experts(dispatched, local), dispatched)
    layer.check_output(rank, out)
    whole = ep.moe(
        layer.hidden(rank),
        layer.logits(rank),
        local,
        layer.gating,
        layer.capacity,
        **layer.more(rank),
    )
    assert torch.equal(whole, out)


def check_received(rank, layer, dispatched):
    """The rows are, expert by expert, source by source, those the sources' routings keep."""
    rows = cm.dispatch(dispatched.rows, dispatched.routing)
    offsets, counts = dispatched.routing.expert_offsets, dispatched.routing.tokens_per_expert
    own = layer.held.experts_of_rank[rank]
    assert counts.tolist() == ([len(expected_tokens(rank, layer, e)) for e in own] or [0])
    for slot, expert in enumerate(own):
        start = int(offsets[slot])
        got = rows[start : start + int(counts[slot])]
        expected = [
            layer.hidden(source)[token] for source, token in expected_tokens(rank, layer, expert)
        ]
        assert torch.equal(got, torch.stack(expected) if expected else got[:0])


def expected_tokens(rank, layer, expert):
    """(source, token) of each row that ``rank`` gets for an expert: dealt out among its holders."""
    tokens = []
    for source in range(layer.world):
        routing = layer.routing(source)
        start = int(routing.expert_offsets[expert])
        kept = routing.row_tokens[start : start + int(routing.tokens_per_expert[expert])].tolist()
        holders = layer.held.ranks_of_expert[expert]
        if source in holders:
            kept = kept if source == rank else []
        else:
            kept = [t for i, t in enumerate(kept) if holders[(source + i) % len(holders)] == rank]
        tokens += [(source, token) for token in kept]
    return tokens


@pytest.mark.parametrize("layers", [four_ranks(), two_ranks()], ids=["four ranks", "two ranks"])
def test_as_in_one_process(layers):
    world = next(iter(layers.values())).world
    run_ranks(world, check_all, layers)
