"""Exchanges under way: the same result, and their time hides behind other work."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

import capmoe_kernels as cm
from cases import normal
from expert_parallel import Layer
from ranks import run_ranks

DELAY = 0.6
LAYERS = [Layer(cm.Capacity(factor=1.25), (24, 9)), Layer(cm.Capacity(), (24, 9))]


class Slow:
    """A work that takes ``delay`` seconds from when it was issued, as on a slow link."""

    def __init__(self, work, delay):
        self.work, self.end = work, time.monotonic() + delay

    def wait(self, timeout=None):
        self.work.wait()
        left = self.end - time.monotonic()
        if timeout is not None and left > timeout.total_seconds():
            time.sleep(timeout.total_seconds())
            raise RuntimeError("Operation timed out!")
        time.sleep(max(0.0, left))
        return True

    def is_completed(self):
        return self.work.is_completed() and time.monotonic() >= self.end


class SlowGroup:
    """Within it every payload travels for DELAY seconds, and ``log`` says what happened when."""

    def __init__(self):
        self.log = []

    def __enter__(self):
        self.real = dist.all_to_all_single
        dist.all_to_all_single = self.exchange
        return self

    def __exit__(self, *_):
        dist.all_to_all_single = self.real

    def exchange(self, received, sent, *args, **options):
        self.log.append("issued")
        delay = DELAY if sent.dim() > 1 else 0.0  # counts are one-dimensional
        return Slow(self.real(received, sent, *args, **options), delay)


def handles(rank, layers):
    for layer in layers:
        ep, hidden, local = layer.build(), layer.hidden(rank), layer.local_experts(rank)
        expected = ep.moe(hidden, layer.logits(rank), local)
        first, second = (ep.route(layer.logits(rank)) for _ in range(2))
        # Two dispatches and two combines under way at once, as for two micro-batches.
        there = [ep.dispatch_async(x, r) for x, r in ((hidden, first), (2 * hidden, second))]
        here = [handle.wait() for handle in there]
        assert here[0] is there[0].wait()
        back = [ep.combine_async(ep.run_experts(d, local), d) for d in here]
        assert torch.equal(back[0].wait(), expected)
        assert torch.equal(back[1].wait(), ep.moe(2 * hidden, layer.logits(rank), local))


def shared_expert(rank, layers):
    for layer in layers:
        ep, hidden, local = layer.build(), layer.hidden(rank), layer.local_experts(rank)
        expected = ep.moe(hidden, layer.logits(rank), local) + hidden.sin()
        with SlowGroup() as group:

            def work(x, log=group.log):
                log.append("shared begins")
                time.sleep(DELAY)
                log.append("shared ends")
                return x.sin()

            def experts(*args, log=group.log, run=ep.run_experts):
                log.append("experts")
                return run(*args)

            ep.run_experts = experts
            start = time.monotonic()
            out = ep.moe(hidden, layer.logits(rank), local, shared_expert=work)
            took = time.monotonic() - start
        counts = ["issued"] if ep.capacity_rows is None else []
        assert group.log == [
            *counts,
            "issued",
            "shared begins",
            "shared ends",
            "experts",
            "issued",
        ]
        assert torch.equal(out, expected)
        # Dispatch beside the shared expert, then combine: two delays, one after the other three.
        assert 2 * DELAY <= took < 2.75 * DELAY, took


def schedule(rank, layers):
    """ScMoE's: the experts read what came before the dense pieces, and run among them."""
    dense = [normal((16, 16), seed=seed, scale=0.25) for seed in range(3)]
    for layer in layers:
        ep, hidden, local = layer.build(), layer.hidden(rank), layer.local_experts(rank)
        expected = hidden
        for weights in dense:
            expected = expected + expected @ weights
        expected = expected + ep.moe(hidden, layer.logits(rank), local)
        for position in range(len(dense) + 1):
            out = hidden
            there = ep.dispatch_async(hidden, ep.route(layer.logits(rank)))
            for weights in dense[:position]:
                out = out + out @ weights
            arrived = there.wait()
            back = ep.combine_async(ep.run_experts(arrived, local), arrived)
            for weights in dense[position:]:
                out = out + out @ weights
            assert torch.equal(out + back.wait(), expected)


def test_handles():
    run_ranks(2, handles, LAYERS)


def test_every_place_of_the_experts():
    run_ranks(2, schedule, LAYERS)


def test_dispatch_hides_behind_a_shared_expert():
    run_ranks(2, shared_expert, LAYERS)
