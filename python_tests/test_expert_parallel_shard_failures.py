"""sharded_moe where a rank dies, stalls, raises or is called otherwise: the others learn who."""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

import capmoe_kernels as cm
from capmoe_kernels.distributed import RankError, shard_experts, sharded_moe
from ranks import run_ranks
from shard_ranks import Layer

TIMEOUT = 1.2
SIZED = Layer(tokens=(5, 3), max_tokens=8)
UNSIZED = replace(SIZED, max_tokens=None)
# Where a rank leaves the call, and where the others wait for it then.
LEAVES = {
    "agreement": (SIZED, "route"),
    "sizes": (UNSIZED, "route"),
    "gather": (UNSIZED, "_routing_of_all"),
    "reduce-scatter": (SIZED, "_grouped_mlp"),
}
MODULE = importlib.import_module("capmoe_kernels.distributed.sharded_moe")


def group_of(timeout=TIMEOUT):
    return dist.new_group(timeout=timedelta(seconds=timeout))


def call(layer, rank, group, **changes):
    """sharded_moe of a rank of two; ``changes`` to its arguments."""
    x, logits, options = layer.tokens_of(rank)
    given = {
        "hidden_states": x,
        "router_logits": logits,
        "shard": shard_experts(layer.make_experts(), rank, 2),
        "gating": layer.gating,
        "group": group,
        "max_tokens": layer.max_tokens,
    }
    return sharded_moe(**(given | options | changes))


def check_output(layer, rank, out):
    x, logits, _ = layer.tokens_of(rank)
    torch.testing.assert_close(out, cm.moe(x, logits, layer.make_experts(), layer.gating))


def expect_blame(layer, phase, group, match=None, **changes):
    """Rank 0's error, which blames rank 1; the seconds it took."""
    start = time.monotonic()
    with pytest.raises(RankError, match=match) as caught:
        call(layer, 0, group, **changes)
    assert (caught.value.ranks, caught.value.phase) == ((1,), phase), caught.value
    assert f"{phase}: rank 1 " in str(caught.value)
    return time.monotonic() - start


def leave(where, how):
    """From now on this rank does ``how`` instead of a step of the layer."""

    def instead(*_, **__):
        how()
        raise AssertionError("has left")

    setattr(MODULE, where, instead)


def goes(rank, phase, how):
    """Rank 1 leaves a layer that worked before; rank 0 has an error within the timeout."""
    layer, where = LEAVES[phase]
    call(layer, rank, None)
    group = group_of()
    if rank == 0:
        took = expect_blame(layer, phase, group)
        assert took < TIMEOUT + 1, took
    else:
        leave(where, how)
        call(layer, rank, group)


def stall():
    time.sleep(60)


def die(after=0.0):
    time.sleep(after)
    os._exit(1)


def closes(rank):
    """A rank's end closes its connections: whoever gathers need not wait long."""
    group = group_of(20)
    call(SIZED, rank, group)
    if rank == 0:
        assert expect_blame(SIZED, "gather", group) < 5
    else:
        die(after=0.3)  # when rank 0 has read what the call sent it


def loses_the_store(rank):
    """Rank 0 dies, and the store with it, before the ranks meet there."""
    group = group_of(20)
    call(SIZED, rank, group)
    if rank == 0:
        die(after=0.3)
    start = time.monotonic()
    with pytest.raises(RankError, match="agreement: rank 0 that holds the group's store") as caught:
        call(replace(SIZED, max_tokens=9), rank, group)
    assert (caught.value.ranks, caught.value.phase) == ((0,), "agreement")
    assert time.monotonic() - start < 5


def raises(rank):
    """An exception of rank 1 alone is its own; rank 0 is told, long before the timeout."""
    for layer, phase in ((SIZED, "agreement"), (UNSIZED, "sizes")):
        group = group_of(6)
        if rank == 0:
            assert expect_blame(layer, phase, group, "raised ValueError: router_logits must") < 4
        else:
            with pytest.raises(ValueError, match="router_logits must have shape"):
                call(layer, rank, group, router_logits=torch.zeros(1, 2))
    group = group_of(6)
    if rank == 0:
        said = "raised MemoryError: of its experts"
        assert expect_blame(SIZED, "reduce-scatter", group, said) < 4
        return

    def fails():
        raise MemoryError("of its experts")

    leave("_grouped_mlp", fails)
    with pytest.raises(MemoryError):
        call(SIZED, rank, group)


def gets_over(rank):
    """An error that all ranks make leaves no trace, even where one is slow to come back."""
    group = group_of(4)
    for layer in (SIZED, UNSIZED):
        with pytest.raises(TypeError, match="shard must be"):
            call(layer, rank, group, shard=None)
        time.sleep(0.8 if rank == 0 else 0)
        check_output(layer, rank, call(layer, rank, group))


def disagrees(rank):
    """All ranks say what differs and on whom, and go on; none hangs."""
    odd, group = rank == 1, group_of(10)
    pairs = ", got .* on rank 0; .* on rank 1$"
    cases = [
        ("the same gating", {"gating": cm.Gating(2, renormalize="topk")}),
        ("the same dtype", {"dtype": torch.float16}),
        ("the same activation", {"experts": {"activation": "gelu"}}),
        ("ranks have .* neurons", {"F": 30}),
    ]
    unseen = [
        ("the same hidden_size", {"H": 32}),
        ("the same num_experts", {"E": 8}),
        ("the same number of candidates", {"capacity": cm.Capacity(1.0, expand="rank", extra=2)}),
        ("the same max_tokens", {"max_tokens": 9}),
    ]
    for layer, found in ((SIZED, cases + unseen), (UNSIZED, cases)):
        half = replace(layer, dtype=torch.bfloat16)  # as wide as the other dtype
        for said, change in found:
            other = replace(half, **change) if odd else half
            with pytest.raises(ValueError, match=said + (pairs if "same" in said else "")):
                call(other, rank, group, capacity=other.capacity)
    for layer in (SIZED, UNSIZED):
        check_output(layer, rank, call(layer, rank, group))


def differs_later(rank):
    """Rank 0 takes its arguments for agreed while rank 1 brings others: each blames the other."""
    group = group_of(6)
    call(SIZED, rank, group)
    start = time.monotonic()
    mine, other, layer = "gather", "agreement", SIZED
    if rank == 1:
        mine, other, layer = other, mine, replace(SIZED, max_tokens=9)
    with pytest.raises(RankError, match=f"is in '{other}' at that point") as caught:
        call(layer, rank, group)
    assert (caught.value.ranks, caught.value.phase) == ((1 - rank,), mine)
    assert time.monotonic() - start < 4


def keeps_nan_to_itself(rank):
    """A NaN logit forbids its expert; nobody raises, and other tokens keep their bits."""
    group = group_of()
    for layer in (SIZED, UNSIZED):
        expected = call(layer, rank, group)
        _, logits, _ = layer.tokens_of(rank)
        bad = torch.zeros(len(logits), dtype=torch.bool)
        bad[::2] = rank == 1
        logits[bad] = float("nan")
        out = call(layer, rank, group, router_logits=logits)
        assert torch.equal(out[~bad], expected[~bad])
        assert not out[bad].any()


@pytest.mark.parametrize("phase", LEAVES)
def test_a_rank_that_stalls(phase):
    run_ranks(2, goes, phase, stall, lost={1})


@pytest.mark.parametrize("phase", ["agreement", "reduce-scatter"])
def test_a_rank_that_dies(phase):
    run_ranks(2, goes, phase, die, lost={1})


def test_a_closed_connection_shows_at_once():
    run_ranks(2, closes, lost={1}, store="tcp")


def test_the_rank_that_holds_the_store_dies():
    run_ranks(2, loses_the_store, lost={0}, store="tcp")


def test_a_rank_that_raises():
    run_ranks(2, raises)


def test_an_error_of_all():
    run_ranks(2, gets_over)


def test_ranks_that_disagree():
    run_ranks(2, disagrees)


def test_ranks_that_differ_later():
    run_ranks(2, differs_later)


def test_nan_stays_where_it_is():
    run_ranks(2, keeps_nan_to_itself)
