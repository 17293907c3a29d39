"""Capacity: the integers of section 1.2, and what the constructors refuse."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

import capmoe_kernels as cm
import oracle
from cases import router_logits

GOLDEN = [  # factor, top_k, tokens, experts, exact ceil, floor
    (1.0, 2, 8, 4, 4, 4),
    (1.0, 2, 4, 4, 2, 2),
    (1.5, 8, 512, 64, 96, 96),
    (1.0, 6, 100, 64, 10, 9),
    (0.8, 6, 40, 64, 3, 3),
    (1.1, 8, 120, 64, 17, 16),
    (1.0, 4, 10, 60, 1, 0),
    (2.0, 8, 3, 64, 1, 0),
    (0.0, 2, 32, 8, 0, 0),
    (4.5, 2, 32, 8, 36, 36),
    (1.25, 8, 4096, 128, 320, 320),
]


@pytest.mark.parametrize(("factor", "top_k", "tokens", "experts", "ceil", "floor"), GOLDEN)
def test_golden_1_2(factor, top_k, tokens, experts, ceil, floor):
    assert cm.expert_capacity(tokens, experts, top_k, factor) == ceil
    assert cm.expert_capacity(tokens, experts, top_k, factor, rounding="floor") == floor


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_exact_on_a_grid(rounding):
    """Floating point is wrong on about one in a thousand of these; integers never are."""
    for factor in [0.1, 0.3, 0.7, 0.8, 1.1, 1.2, 1.3, 1.7, 2.3, 1, 3, Fraction(1, 3), 1e-3]:
        for top_k, experts in [(1, 1), (1, 7), (2, 8), (4, 60), (6, 64), (8, 512)]:
            for tokens in [0, 1, 2, 3, 40, 80, 120, 257, 4096]:
                exact = Fraction(str(factor)) * top_k * tokens / experts
                expected = math.ceil(exact) if rounding == "ceil" else math.floor(exact)
                got = cm.expert_capacity(tokens, experts, top_k, factor, rounding)
                assert got == expected, (factor, top_k, experts, tokens)


@pytest.mark.parametrize(("factor", "top_k", "tokens", "experts", "ceil", "floor"), GOLDEN)
def test_golden_1_2_bounds_the_load(backend, factor, top_k, tokens, experts, ceil, floor):
    """Everybody wants the same experts: the busiest one holds exactly min(C, T)."""
    tokens = min(tokens, 512)
    logits = router_logits(1, experts).expand(tokens, experts)
    for rounding in ["ceil", "floor"]:
        capacity = cm.Capacity(factor=factor, rounding=rounding)
        routing = cm.route(logits, cm.Gating(top_k=top_k), capacity)
        bound = min(oracle.share(tokens, experts, top_k, factor, rounding), tokens)
        assert routing.tokens_per_expert.max().item() == bound


def test_factor_and_limit_agree(backend):
    logits = router_logits(100, 64)
    gating = cm.Gating(top_k=6)
    by_factor = cm.route(logits, gating, cm.Capacity(factor=1.0))
    by_limit = cm.route(logits, gating, cm.Capacity(limit=10))
    for a, b in zip(by_factor, by_limit, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("factor", [1, Fraction(1), 1.0])
def test_any_real_number_is_a_factor(backend, factor):
    """The reference code took an int for 'no capacity' (1.2); here 1 is 1.0."""
    logits = router_logits(64, 8, "skewed")
    routing = cm.route(logits, cm.Gating(top_k=2), cm.Capacity(factor=factor))
    assert routing.tokens_per_expert.max().item() == 16


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"factor": -0.5}, ValueError, "factor"),
        ({"factor": math.nan}, ValueError, "factor"),
        ({"factor": "1.0"}, TypeError, "factor"),
        ({"factor": True}, TypeError, "factor"),
        ({"factor": 1.0, "limit": 3}, ValueError, "limit"),
        ({"limit": -1}, ValueError, "limit"),
        ({"limit": 2.0}, TypeError, "limit"),
        ({"rounding": "nearest"}, ValueError, "rounding"),
        ({"policy": "first"}, ValueError, "policy"),
        ({"drop_score": "logit"}, ValueError, "drop_score"),
        ({"expand": "all"}, ValueError, "expand"),
        ({"expand": "local"}, ValueError, "local_experts"),
        ({"local_experts": (0, 2)}, ValueError, "local_experts"),
        ({"expand": "local", "local_experts": (3, 1)}, ValueError, "local_experts"),
        ({"expand": "local", "local_experts": (-1, 1)}, ValueError, "local_experts"),
        ({"expand": "local", "local_experts": [0, 1, 2]}, TypeError, "local_experts"),
        ({"expand": "rank", "extra": -1}, ValueError, "extra"),
        ({"extra": 2}, ValueError, "extra"),
        ({"expand_priority": "topk"}, ValueError, "expand_priority"),
        ({"max_experts_per_token": 0}, ValueError, "max_experts_per_token"),
        ({"reroute_rounds": 0}, ValueError, "reroute_rounds"),
        ({"reroute_rounds": 2, "expand": "rank", "extra": 1}, ValueError, "reroute_rounds"),
        ({"scope": "node"}, ValueError, "scope"),
        ({"scope": "device"}, ValueError, "experts_per_device"),
        ({"experts_per_device": 2}, ValueError, "experts_per_device"),
        ({"scope": "device", "experts_per_device": 0}, ValueError, "experts_per_device"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"seed": 1.5}, TypeError, "seed"),
    ],
    ids=str,
)
def test_capacity_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        cm.Capacity(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"top_k": 0}, ValueError, "top_k"),
        ({"top_k": 1.0}, TypeError, "top_k"),
        ({"top_k": 2, "scoring": "tanh"}, ValueError, "scoring"),
        ({"top_k": 2, "renormalize": True}, ValueError, "renormalize"),
        ({"top_k": 2, "scaling": 0.0}, ValueError, "scaling"),
        ({"top_k": 2, "scaling": math.inf}, ValueError, "scaling"),
        ({"top_k": 2, "scaling": "1"}, TypeError, "scaling"),
        ({"top_k": 2, "num_groups": 0}, ValueError, "num_groups"),
        ({"top_k": 2, "num_groups": 2, "topk_groups": 3}, ValueError, "topk_groups"),
        ({"top_k": 2, "group_score": "mean"}, ValueError, "group_score"),
    ],
    ids=str,
)
def test_gating_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        cm.Gating(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, 4, 1, 1.0), ValueError, "num_tokens"),
        ((1.0, 4, 1, 1.0), TypeError, "num_tokens"),
        ((4, 0, 1, 1.0), ValueError, "num_experts"),
        ((4, 4, 5, 1.0), ValueError, "top_k"),
        ((4, 4, 0, 1.0), ValueError, "top_k"),
        ((4, 4, 1, math.nan), ValueError, "factor"),
        ((4, 4, 1, math.inf), ValueError, "factor"),
        ((4, 4, 1, -1.0), ValueError, "factor"),
        ((4, 4, 1, None), TypeError, "factor"),
        ((4, 4, 1, 1.0, "round"), ValueError, "rounding"),
    ],
    ids=str,
)
def test_expert_capacity_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        cm.expert_capacity(*arguments)


def test_settings_are_frozen_and_comparable():
    assert cm.Capacity(factor=1.5) == cm.Capacity(factor=1.5) != cm.Capacity(factor=1.25)
    assert hash(cm.Gating(top_k=2)) == hash(cm.Gating(top_k=2))
    with pytest.raises(AttributeError):
        cm.Capacity().factor = 2.0
    with pytest.raises(AttributeError):
        cm.Gating(top_k=2).top_k = 3


@pytest.mark.parametrize("factor", [1e-7, 9.9e-7])
def test_a_factor_that_would_become_zero_is_refused(factor):
    with pytest.raises(ValueError, match="factor must be 0 or at least 1e-6"):
        cm.expert_capacity(10, 4, 2, factor)
    with pytest.raises(ValueError, match=r"Capacity\.factor must be 0 or at least 1e-6"):
        cm.Capacity(factor=factor)


def test_a_factor_is_the_nearest_fraction_of_a_million_or_less():
    assert cm.expert_capacity(9, 1, 1, 1 / 3, "floor") == 3
    assert cm.expert_capacity(10**6, 1, 1, 1.000001) == 10**6 + 1
    assert cm.expert_capacity(10**9, 1, 1, 1.0000001) == 10**9
