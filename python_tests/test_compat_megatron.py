"""compat.megatron: routing tables against loops, and against Megatron-Core where that is there."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.compat import apply_router_token_dropping, select_from_map
from cases import DROPLESS, brief
from checks import assert_routing, expected_select, same_bits
from compat_cases import EXPERTS as E
from compat_cases import TOP_K as K
from compat_cases import tables
from megatron_core import moe_utils


def listed(probs, routing_map, columns=K):
    """(ids, weights) [T, K]: each token's experts in ascending order, E behind."""
    ids = [[e for e in range(E) if row[e]] for row in routing_map.tolist()]
    ids = torch.tensor([row + [E] * (columns - len(row)) for row in ids]).view(-1, columns)
    padded = torch.cat([probs.float(), torch.zeros(len(probs), 1)], 1)
    return ids, padded.gather(1, ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "capacity", [DROPLESS, cm.Capacity(1.0), cm.Capacity(limit=3, policy="keep_last")], ids=brief
)
def test_select_from_map_is_select(poison, dtype, capacity):
    probs, routing_map = tables(dtype=dtype)
    routing_map[4] = False
    routing_map[9, 0] = ~routing_map[9, 0]
    columns = int(routing_map.sum(1).max())
    probs[0, :] = torch.where(routing_map[0], probs[0], torch.nan)  # not looked at
    ids, weights = listed(probs, routing_map, columns)
    expected = expected_select(ids, weights, weights, E, capacity)
    assert_routing(select_from_map(probs, routing_map, capacity), expected)
    again = select_from_map(probs, routing_map, capacity, router_topk=columns)
    assert_routing(again, expected)


def test_select_from_map_passes_the_rest_on():
    probs, routing_map = tables()
    mask, options = torch.arange(50) % 3 != 0, {"layout": "padded", "row_alignment": 4}
    ids, weights = listed(probs, routing_map)
    capacity = cm.Capacity(1.0)
    routing = select_from_map(probs, routing_map, capacity, token_mask=mask, **options)
    expected = expected_select(ids, weights, weights, E, capacity, token_mask=mask, **options)
    assert_routing(routing, expected)


def dropped_in_loops(probs, routing_map, capacity, drop_policy):
    """[T, E] bool: an expert's best, or first, tokens; ties to the lower token."""
    kept = torch.zeros_like(routing_map)
    for e in range(E):
        asking = [t for t in range(len(probs)) if routing_map[t, e]]
        if drop_policy == "probs":
            asking.sort(key=lambda t: -float(probs[t, e]))  # stable
        for t in asking[:capacity]:
            kept[t, e] = True
    return kept


@pytest.mark.parametrize("style", ["skewed", "levels"])
@pytest.mark.parametrize("drop_policy", ["probs", "position"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3, 9.0])
def test_token_dropping_against_loops(style, drop_policy, factor):
    probs, routing_map = tables(style=style, dtype=torch.bfloat16)
    capacity = cm.expert_capacity(50, E, K, factor)
    kept = dropped_in_loops(probs, routing_map, capacity, drop_policy)
    assert (kept.sum(0) < routing_map.sum(0)).any() == (factor < 9)
    out, final_map = apply_router_token_dropping(probs, routing_map, K, factor, drop_policy)
    assert final_map.equal(kept)
    assert same_bits(out, torch.where(kept, probs, torch.zeros_like(probs)))
    padded, padded_map = apply_router_token_dropping(
        probs, routing_map, K, factor, drop_policy, True
    )
    assert same_bits(padded, out)
    assert padded_map.sum(0).tolist() == [min(capacity, 50)] * E
    for e in range(E):
        own = kept[:, e].nonzero()[:, 0].tolist()
        others = [t for t in range(50) if t not in own][: min(capacity, 50) - len(own)]
        assert padded_map[:, e].nonzero()[:, 0].tolist() == sorted(own + others)


def test_token_dropping_compiles():
    probs, routing_map = tables()

    def drop(probs, routing_map):
        return apply_router_token_dropping(probs, routing_map, K, 1.0, "position", True)

    compiled = torch.compile(drop, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(compiled(probs, routing_map), drop(probs, routing_map), strict=True):
        assert ours.equal(expected)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 9.0])
def test_by_probs_it_is_megatrons_own(factor, pad):
    theirs_module = moe_utils()
    arguments = (*tables(), K, factor, "probs", pad)
    ours = apply_router_token_dropping(*arguments)
    theirs = theirs_module.apply_router_token_dropping(*arguments)
    assert same_bits(ours[0], theirs[0])
    if pad:  # which tokens fill up is open there
        assert ours[1].sum(0).equal(theirs[1].sum(0))
    else:
        assert ours[1].equal(theirs[1])


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (TypeError, "^routing_map must be bool", {"routing_map": torch.ones(50, E)}),
        (ValueError, r"^probs must have shape \[50, 8\]", {"probs": torch.ones(50, 7)}),
        (TypeError, "^probs must be float32", {"probs": torch.ones(50, E).double()}),
        (ValueError, "at most router_topk = 1 experts of a token, got 2", {"router_topk": 1}),
        (ValueError, "^router_topk must be from 1 to 8", {"router_topk": 9}),
        (RuntimeError, "probs requires grad", {"probs": "grad"}),
    ],
)
def test_border_of_select_from_map(error, match, options):
    probs, routing_map = tables()
    if options.get("probs") == "grad":
        options = {"probs": probs.requires_grad_()}
    with pytest.raises(error, match=match):
        select_from_map(**({"probs": probs, "routing_map": routing_map} | options))


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("^drop_policy must be one of 'probs', 'position'", {"drop_policy": "random"}),
        ("^factor must be finite", {"capacity_factor": float("inf")}),
        ("^router_topk must be from 1 to 8", {"router_topk": 0}),
    ],
)
def test_border_of_token_dropping(match, options):
    arguments = {"router_topk": K, "capacity_factor": 1.0} | options
    with pytest.raises(ValueError, match=match):
        apply_router_token_dropping(*tables(), **arguments)
