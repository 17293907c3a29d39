"""The gate: scores, top-k, groups, bias and weights, against the oracle in exact order."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from cases import make_experts, named, normal, router_logits
from checks import assert_close_to_truth, check_gate, expected_gate, same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", ["none", "topk"])
def test_scores_and_weights(backend, dtype, scoring, renormalize):
    logits = router_logits(65, 24).to(dtype)
    gating = cm.Gating(top_k=3, scoring=scoring, renormalize=renormalize, scaling=2.5)
    check_gate(backend, logits, gating)


@pytest.mark.parametrize(
    "num_experts", [1, 2, 3, 8, 15, 16, 17, 60, 64, 100, 128, 160, 256, 511, 512]
)
def test_number_of_experts(backend, num_experts):
    for top_k in sorted({1, min(4, num_experts), min(10, num_experts), num_experts}):
        logits = router_logits(5, num_experts, seed=num_experts)
        check_gate(backend, logits, cm.Gating(top_k=top_k))


def test_every_top_k(backend):
    logits = router_logits(7, 60)
    for top_k in range(1, 61):
        check_gate(backend, logits, cm.Gating(top_k=top_k, renormalize="topk"))


@named("empty", "one_token", "ties", "e60", "k_equals_e", "single_expert")
def test_cases(backend, poison, case):
    check_gate(backend, case.logits(), case.gating)


def test_ties_go_to_the_lower_expert(backend):
    for num_experts in [4, 7, 32, 60, 512]:
        ids, _, _ = backend.gate(torch.zeros(3, num_experts), cm.Gating(top_k=4))
        assert ids.tolist() == [[0, 1, 2, 3]] * 3


def test_negative_zero_ties_with_zero(backend):
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    ids, _, _ = backend.gate(logits, cm.Gating(top_k=3))
    assert ids.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_equal_logits_have_equal_scores(backend, scoring):
    """Wherever in the row they stand: a vector loop and its tail must not differ by a bit."""
    for num_experts in [5, 19, 60, 131]:
        logits = router_logits(16, num_experts, "levels", seed=num_experts)
        gating = cm.Gating(top_k=num_experts, scoring=scoring)
        ids, weights, scores = backend.gate(logits, gating)
        ranked = logits.gather(1, ids.long())
        same = ranked[:, 1:] == ranked[:, :-1]
        assert same.any()
        assert (scores[:, 1:] == scores[:, :-1])[same].all()
        assert (weights[:, 1:] == weights[:, :-1])[same].all()


def test_a_row_does_not_see_its_neighbours(backend):
    logits = router_logits(37, 60)
    gating = cm.Gating(top_k=6, renormalize="topk")
    together = backend.gate(logits, gating)
    for t in [0, 1, 17, 36]:
        alone = backend.gate(logits[t : t + 1], gating)
        for a, b in zip(alone, together, strict=True):
            assert same_bits(a[0], b[t])


def test_one_ulp_decides(backend):
    """Softmax rounds neighbours together; the ranking is by the logits themselves."""
    logits = torch.full((1, 6), 1.0)
    logits[0, 4] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    ids, _, _ = backend.gate(logits, cm.Gating(top_k=2))
    assert ids.tolist() == [[4, 0]]


def test_scores_that_underflow(backend):
    """exp underflows for most experts; their order is still the logits' order."""
    logits = torch.tensor([[0.0, -200.0, -150.0, -300.0, 60.0, -1e30, -250.0]])
    check_gate(backend, logits, cm.Gating(top_k=7))
    huge = torch.tensor([[3e38, 2e38, -3e38, 0.0]])
    ids, weights, _ = backend.gate(huge, cm.Gating(top_k=4))
    assert ids.tolist() == [[0, 1, 3, 2]]
    assert weights.tolist() == [[1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("renormalize", ["none", "topk", "kept"])
@pytest.mark.parametrize("drop_score", ["prob", "weight"])
def test_drop_score(backend, renormalize, drop_score):
    gating = cm.Gating(top_k=3, renormalize=renormalize)
    options = {"drop_score": drop_score, "expand": "rank", "extra": 2}
    logits = router_logits(33, 16)
    ids, _, scores = backend.gate(logits, gating, **options)
    expected = expected_gate(logits, gating, **options)
    truth = torch.tensor(expected.scores, dtype=torch.float64)
    same_dtype = logits.softmax(1).gather(1, ids.long())
    if drop_score == "weight" and renormalize != "none":
        same_dtype = same_dtype / same_dtype[:, :3].sum(1, keepdim=True)
    assert_close_to_truth(scores, truth, same_dtype, "scores")


@pytest.mark.parametrize(
    ("expand", "extra", "local"),
    [
        ("rank", 1, (0, 0)),
        ("rank", 9, (0, 0)),
        ("rank", 60, (0, 0)),
        ("local", 0, (0, 10)),
        ("local", 0, (50, 60)),
        ("local", 0, (7, 7)),
        ("local", 0, (0, 60)),
    ],
)
def test_extra_candidates(backend, expand, extra, local):
    logits = router_logits(20, 60)
    gating = cm.Gating(top_k=4)
    extra = min(extra, 56)
    check_gate(backend, logits, gating, expand=expand, extra=extra, local=local)
    check_gate(
        backend, logits, cm.Gating(4, renormalize="topk"), expand=expand, extra=extra, local=local
    )


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minus_inf_forbids(backend, poison, scoring, dtype):
    logits = router_logits(30, 12).to(dtype)
    logits[torch.rand(30, 12, generator=torch.Generator().manual_seed(3)) < 0.7] = -math.inf
    logits[4] = -math.inf
    gating = cm.Gating(top_k=4, scoring=scoring, renormalize="topk")
    check_gate(backend, logits, gating)
    check_gate(backend, logits, gating, torch.full((12,), 9.0))
    check_gate(backend, logits, gating, expand="local", local=(2, 7))
    ids, _, _ = backend.gate(logits, gating)
    assert ids[4].tolist() == [12] * 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_item_17_nan_and_inf(backend, dtype):
    """Where nobody looks (a compiled graph, a GPU): NaN is -inf, +inf the largest number."""
    logits = router_logits(6, 8).to(dtype)
    logits[0, 3] = math.nan
    logits[1, :] = math.nan
    logits[2, 5] = math.inf
    logits[3, 1] = logits[3, 6] = math.inf
    gating = cm.Gating(top_k=2)
    check_gate(backend, logits, gating)
    ids, weights, _ = backend.gate(logits, gating)
    assert 3 not in ids[0].tolist()
    assert ids[1].tolist() == [8, 8]
    assert ids[2, 0] == 5
    assert weights[2, 0] == 1.0
    assert ids[3].tolist() == [1, 6]
    assert weights[3].tolist() == [0.5, 0.5]


def test_strided_logits(backend):
    base = router_logits(40, 30)
    gating = cm.Gating(top_k=3)
    for view in [base.t(), base[::2], base[:, ::3], base[1:, 5:20], base[0].expand(9, 30)]:
        check_gate(backend, view, gating)


def test_sigmoid_that_saturates_is_ranked_by_logits(backend):
    """In float32 the sigmoids of 20, 25 and 30 are all 1."""
    logits = torch.tensor([[20.0, 30.0, 25.0, 0.0]])
    ids, weights, _ = backend.gate(logits, cm.Gating(top_k=3, scoring="sigmoid"))
    assert ids.tolist() == [[1, 2, 0]]
    assert weights.tolist() == [[1.0, 1.0, 1.0]]


def test_a_bias_of_minus_infinity_forbids_an_expert(backend):
    bias = torch.tensor([0.0, -math.inf, 0.0, -math.inf])
    logits, gating = router_logits(5, 4), cm.Gating(top_k=3)
    check_gate(backend, logits, gating, bias)
    ids, weights, _ = backend.gate(logits, gating, bias)
    assert set(ids[:, :2].flatten().tolist()) == {0, 2}
    assert (ids[:, 2] == 4).all()
    assert (weights[:, 2] == 0).all()


def test_settings_that_served_once_are_checked_again(backend):
    """moe remembers which settings fit how many experts, and nothing else of a call."""
    gating, x = cm.Gating(top_k=3), normal((5, 16))
    experts, fewer = make_experts(6, 16, 8), make_experts(2, 16, 8)
    logits = router_logits(5, 6)
    expected = cm.moe(x, logits, experts, gating)
    many = 300 if backend.name == "cpu" else 3  # more than are remembered
    for top_k in range(many):
        cm.moe(x, logits, experts, cm.Gating(top_k=1 + top_k % 6))
    assert same_bits(cm.moe(x, logits, experts, gating), expected)
    with pytest.raises(ValueError, match=r"Gating\.top_k must be at most 2"):
        cm.moe(x, logits[:, :2], fewer, gating)
    with pytest.raises(ValueError, match=r"hidden_states must have shape"):
        cm.moe(x[:, :9], logits, experts, gating)
    with pytest.raises(ValueError, match=r"router_logits must have shape"):
        cm.moe(x, logits[:4], experts, gating)
    with pytest.raises(TypeError, match=r"hidden_states must be float32"):
        cm.moe(x.bfloat16(), logits, experts, gating)
    with pytest.raises(TypeError, match=r"router_logits must be float32"):
        cm.moe(x, logits.double(), experts, gating)
    with pytest.raises(RuntimeError, match=r"router_logits requires grad"):
        cm.moe(x, logits.clone().requires_grad_(), experts, gating)
    for bad in (math.nan, math.inf):
        logits[3, 1] = bad
        with pytest.raises(ValueError, match=r"below inf, got \w+ at \[3, 1\]"):
            cm.moe(x, logits, experts, gating)
