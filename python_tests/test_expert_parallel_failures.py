"""A rank that dies, stalls, raises or disagrees: every other rank learns who, and where."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist

import capmoe_kernels as cm
from capmoe_kernels.distributed import Placement, RankError
from expert_parallel import Layer
from ranks import run_ranks

TIMEOUT = 3.0
FIXED = Layer(cm.Capacity(factor=1.25))
COUNTED = Layer(cm.Capacity())


def group_of(timeout=TIMEOUT):
    return dist.new_group(timeout=timedelta(seconds=timeout))


def forward(ep, layer, rank, before_experts=None):
    routing = ep.route(layer.logits(rank))
    dispatched = ep.dispatch(layer.hidden(rank), routing)
    if before_experts is not None:
        before_experts()
    return ep.combine(ep.run_experts(dispatched, layer.local_experts(rank)), dispatched)


def expect_blame(blamed, phase, layer, rank, ep):
    """The others' error within the timeout, and a moment for a busy machine."""
    start = time.monotonic()
    with pytest.raises(RankError) as caught:
        forward(ep, layer, rank)
    took = time.monotonic() - start
    assert (caught.value.ranks, caught.value.phase) == ((blamed,), phase), caught.value
    assert f"{phase}: rank {blamed} " in str(caught.value)
    assert took < TIMEOUT + 1, took
    return took


def stalls(rank, layer, phase):
    """Rank 2 sleeps through the timeout, before the dispatch or before the combine."""
    group = group_of()
    ep = layer.build(group)
    layer.check_output(rank, forward(ep, layer, rank))
    if rank != 2:
        return expect_blame(2, phase, layer, rank, ep)
    if phase == "combine":
        with pytest.raises(RuntimeError):
            forward(ep, layer, rank, lambda: time.sleep(TIMEOUT + 1.5))
    else:
        time.sleep(TIMEOUT + 1.5)
    return None


def dies(rank, layer, phase, victim=3):
    """A rank ends without a word. That breaks connections: others need not wait long."""
    ep = layer.build(group_of())
    forward(ep, layer, rank)
    if rank != victim:
        return expect_blame(victim, phase, layer, rank, ep)
    if phase == "combine":
        forward(ep, layer, rank, lambda: os._exit(1))
    os._exit(1)


def is_late(rank):
    """Rank 0 alone runs out of patience, and blames who never came, not who waits like itself."""
    ep = FIXED.build(timeout=2.5 if rank == 0 else None)
    routing = ep.route(FIXED.logits(rank))
    time.sleep(4 if rank == 2 else 0)
    if rank != 0:
        ep.dispatch(FIXED.hidden(rank), routing)
        return
    with pytest.raises(RankError) as caught:
        ep.dispatch(FIXED.hidden(rank), routing)
    assert caught.value.ranks == (2,)
    time.sleep(3)  # the exchange itself goes on


def raises(rank):
    """Rank 1's wrong argument is its own ValueError; the rest are told, long before the timeout."""
    layer = FIXED
    ep = layer.build(group_of(60))
    # An error that all ranks make and get over leaves no trace, even where an exchange is slow.
    with pytest.raises(TypeError, match="local_experts"):
        ep.moe(layer.hidden(rank), layer.logits(rank), None)
    time.sleep(2.5 if rank == 0 else 0)
    layer.check_output(
        rank, ep.moe(layer.hidden(rank), layer.logits(rank), layer.local_experts(rank))
    )
    start = time.monotonic()
    if rank == 1:
        with pytest.raises(ValueError, match="hidden_states must have shape"):
            ep.moe(layer.hidden(rank)[:, 1:], layer.logits(rank), layer.local_experts(rank))
        return
    with pytest.raises(
        RankError, match="rank 1 raised ValueError: hidden_states must have"
    ) as caught:
        ep.moe(layer.hidden(rank), layer.logits(rank), layer.local_experts(rank))
    assert caught.value.ranks == (1,)
    assert time.monotonic() - start < 10


def disagrees(rank):
    """Arguments of which rank 2 has another: all ranks say which and who, and none hangs."""
    odd = rank == 2
    layer = FIXED
    other = Placement(((0, 1), (2, 3), (4, 5), (7, 6)))
    cases = [
        ("gating", {"gating": cm.Gating(top_k=2)}),
        ("exchange", {"capacity": cm.Capacity(limit=4)}),
        ("exchange", {"capacity": cm.Capacity(factor=1.5)}),
        ("exchange", {"capacity": None}),
        ("exchange", {"exchange": "counted"}),
        ("hidden_size", {"hidden_size": 17}),
        ("dtype", {"dtype": torch.bfloat16}),
    ]
    for name, change in cases:
        with pytest.raises(ValueError, match=f"the same {name}, got .* on rank.* on rank"):
            layer.build(**(change if odd else {}))
    with pytest.raises(ValueError, match=r"the same placement, .* on ranks 0, 1, 3; .* on rank 2$"):
        (Layer(layer.capacity, placement=other) if odd else layer).build()
    with pytest.raises(
        ValueError, match="the same num_experts, got 8 on ranks 0, 1, 3; 9 on rank 2"
    ):
        (Layer(layer.capacity, E=9) if odd else layer).build()
    if odd:
        with pytest.raises(TypeError, match="max_tokens must be an int, got NoneType"):
            layer.build(max_tokens=None)
    else:
        with pytest.raises(RankError, match="construction: rank 2 raised TypeError: max_tokens"):
            layer.build()
    # The largest of the ranks' bounds is everybody's; their policies are their own.
    own = cm.Capacity(factor=Fraction(5, 4), policy="keep_first", seed=rank)
    ep = layer.build(max_tokens=24 if odd else 3, capacity=own)
    layer = replace(layer, capacity=own)
    layer.check_output(rank, forward(ep, layer, rank))
    if not odd:  # comes too late
        with pytest.raises(RankError, match="construction: rank 2 did not build") as caught:
            layer.build(timeout=0.3)
        assert (caught.value.ranks, caught.value.phase) == ((2,), "construction")


def refuses(rank):
    """What a call may not be given. All ranks alike, so that all go on."""
    layer = Layer(cm.Capacity(factor=1.0), (4, 6))
    ep, counted = layer.build(), Layer(cm.Capacity(), (4, 6)).build()
    hidden, logits, local = layer.hidden(rank), layer.logits(rank), layer.local_experts(rank)
    both = torch.cat([logits, logits])
    routing = cm.route(both, layer.gating)
    refused = [
        (ValueError, "at most max_tokens=6 tokens", lambda: ep.route(both)),
        (ValueError, "must be the agreed", lambda: ep.route(logits, cm.Gating(top_k=2))),
        (ValueError, "at most 2 rows.*got 3", lambda: ep.route(logits, None, cm.Capacity(limit=3))),
        (ValueError, "bounds nothing", lambda: ep.route(logits, None, cm.Capacity())),
        (
            ValueError,
            "keep at most 2 rows",
            lambda: ep.dispatch(torch.cat([hidden, hidden]), routing),
        ),
        (ValueError, "hidden_states", lambda: ep.moe(hidden[:, :9], logits, local)),
        (TypeError, "hidden_states", lambda: ep.moe(hidden.double(), logits, local)),
        (TypeError, "local_experts", lambda: ep.moe(hidden, logits, "experts")),
        (ValueError, "local_experts must be 4", lambda: ep.moe(hidden, logits, layer.experts())),
        (ValueError, "router_logits", lambda: ep.moe(hidden, logits[:, 1:], local)),
        (TypeError, "routing", lambda: ep.dispatch(hidden, logits)),
        (TypeError, "capacity", lambda: counted.route(logits, None, 1.5)),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match="contiguous range"):
        Layer(
            cm.Capacity(factor=1.0, expand="local", local_experts=(0, 1)),
            (4, 6),
            placement=Placement(((0, 2, 4, 6), (1, 3, 5, 7))),
        ).build()
    # Tighter, or of another policy, is fine; where rows are counted, any capacity is.
    smaller = Layer(cm.Capacity(limit=1, policy="keep_first", seed=3), (4, 6))
    smaller.check_output(rank, ep.moe(hidden, logits, local, None, smaller.capacity))
    smaller.check_output(rank, counted.moe(hidden, logits, local, None, smaller.capacity))


def keeps_nan_to_itself(rank):
    """NaN in rank 1's tokens and logits: what other tokens get stays as it is, bit for bit."""
    for layer in (FIXED, COUNTED):
        ep, local = layer.build(), layer.local_experts(rank)
        hidden, logits = layer.hidden(rank), layer.logits(rank)
        expected = ep.moe(hidden, logits, local)
        bad = torch.zeros(len(hidden), dtype=torch.bool)
        if rank == 1:
            bad[::3] = True
            hidden[bad] = float("nan")
        out = ep.moe(hidden, logits, local)
        assert torch.equal(out[~bad], expected[~bad])
        assert out[bad & (layer.routing(rank).rows >= 0).any(1)].isnan().all()
        logits[bad] = float("nan")
        out = ep.moe(hidden, logits, local)
        assert not out[bad].any()  # a token without a choice
        if rank != 1:
            assert torch.equal(out, expected)
        else:
            mask = {"token_mask": ~bad}
            assert out[~bad].isfinite().all()
            assert ep.route(logits).demand_per_expert.equal(
                cm.route(layer.logits(rank), layer.gating, **mask).demand_per_expert
            )


@pytest.mark.parametrize(
    ("layer", "phase"),
    [(FIXED, "dispatch"), (FIXED, "combine"), (COUNTED, "counts")],
    ids=["fixed, dispatch", "fixed, combine", "counted"],
)
def test_a_rank_that_stalls_or_dies(layer, phase):
    run_ranks(4, stalls, layer, phase)
    took = run_ranks(4, dies, layer, phase, lost={3})
    assert max(took[:3]) < TIMEOUT / 2  # a closed connection is seen at once


def test_a_rank_that_is_late():
    run_ranks(4, is_late)


def test_the_rank_that_holds_the_store_dies():
    run_ranks(4, dies, FIXED, "combine", 0, lost={0}, store="tcp")


def test_a_rank_dies_and_the_store_is_tcp():
    run_ranks(4, dies, FIXED, "dispatch", 1, lost={1}, store="tcp")


def test_a_rank_that_raises():
    run_ranks(4, raises)


def test_ranks_that_disagree():
    run_ranks(4, disagrees)


def test_arguments_refused():
    run_ranks(2, refuses)


def test_nan_stays_where_it_is():
    run_ranks(4, keeps_nan_to_itself)
