"""straggler and simulate_loads: what they refuse, in words; and what simulated loads are."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.distributed import Placement, simulate_loads, straggler

EXPANDED_DROP = cm.Capacity(factor=1.0, expand="local", local_experts=(0, 0))
LOADS = [[3, 1, 1, 3], [3, 2, 0, 3]]


def routings():
    return [cm.route(torch.randn(4, 4), cm.Gating(top_k=2)) for _ in range(2)]


def test_simulated_loads_are_whole_tokens_and_repeat():
    loads = simulate_loads(12, 3, 4, 50, 1.0, steps=2, seed=5)
    assert loads.sum(2).eq(150).all()
    assert loads.max() <= 50
    assert torch.equal(loads, simulate_loads(12, 3, 4, 50, 1.0, steps=2, seed=5))
    assert not torch.equal(loads, simulate_loads(12, 3, 4, 50, 1.0, steps=2, seed=6))
    skewed = [int(simulate_loads(12, 3, 1, 4000, skew, seed=7).max()) for skew in (0.0, 0.7, 2.0)]
    assert skewed == sorted(skewed)


def test_simulated_tokens_draw_by_log_normal_popularity():
    """With top-1 an expert's share is its popularity's."""
    z = torch.randn(6, generator=torch.Generator().manual_seed(9))
    share = simulate_loads(6, 1, 2, 20_000, 0.8, seed=9).sum((0, 1)) / 40_000
    assert share.tolist() == pytest.approx((0.8 * z).softmax(0).tolist(), abs=0.01)


REFUSED = {
    "floats": (lambda: straggler([0.5], 1), TypeError, "whole numbers"),
    "words": (lambda: straggler("loads", 1), TypeError, "loads must be"),
    "negative": (lambda: straggler([-1], 1), ValueError, ">= 0, got -1"),
    "empty": (lambda: straggler([], 1), (TypeError, ValueError), "loads must be"),
    "sources": (lambda: straggler([[1, 2]] * 3, 2), ValueError, "2 source ranks.* got 3"),
    "devices": (lambda: straggler([1], 0), ValueError, "devices must be >= 1"),
    "placement": (
        lambda: straggler([1, 2], 2, Placement.even(4, 2)),
        ValueError,
        "placement must have 2 experts",
    ),
    "capacity twice": (
        lambda: straggler(routings(), 2, capacity=cm.Capacity(factor=1.0)),
        ValueError,
        "capacity goes with loads",
    ),
    "mixed": (lambda: straggler([*routings(), 3], 3), TypeError, r"routing\[2\]"),
    "reroute": (
        lambda: straggler([4, 4], 2, capacity=cm.Capacity(factor=1.0, reroute_rounds=2)),
        ValueError,
        "reroute_rounds=2 depends on more than loads",
    ),
    "no top_k": (
        lambda: straggler(LOADS, 2, capacity=EXPANDED_DROP),
        ValueError,
        "top_k must be given",
    ),
    "half tokens": (
        lambda: straggler([[1, 2], [2, 1]], 2, capacity=EXPANDED_DROP, top_k=2),
        ValueError,
        "whole tokens of top_k=2",
    ),
    "one source": (
        lambda: straggler([4, 4], 2, capacity=EXPANDED_DROP, top_k=2),
        ValueError,
        "each of the 2 ranks",
    ),
    "dtype": (
        lambda: straggler([1], 1, hidden_size=2, dtype=torch.int8),
        ValueError,
        "dtype must be one of",
    ),
    "skew": (lambda: simulate_loads(4, 2, 2, 2, -1.0), ValueError, "skew must be >= 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
