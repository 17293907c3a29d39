"""The CUDA gate, its PTX run on the CPU: against the reference, and what it marks for select."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import capmoe_kernels as cm
from cases import normal, router_logits
from cuda_gate import DTYPES, Ask, check, check_cards, launch_gate, plain


@pytest.mark.parametrize("experts", [1, 2, 8, 16, 31, 60, 64, 72, 128, 160, 256, 512])
def test_experts_and_top_k(experts):
    dtypes = itertools.cycle(DTYPES)
    for top_k in sorted({k for k in (1, 2, 6, 8, 16, experts) if k <= experts}):
        for style, seed in (("gaussian", 0), ("levels", 3)):
            logits = router_logits(33, experts, style, seed=top_k).to(next(dtypes))
            check(logits, plain(top_k), seeds=(seed,))


@pytest.mark.parametrize("tokens", [0, 1, 2, 31, 33, 257])
@pytest.mark.parametrize("experts", [8, 64, 256])
def test_tokens(tokens, experts):
    check(router_logits(tokens, experts, seed=tokens), plain(2))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", ["none", "topk", "kept"])
@pytest.mark.parametrize("drop_score", ["prob", "weight"])
def test_scores_and_weights(scoring, renormalize, drop_score):
    gating = cm.Gating(6, scoring=scoring, renormalize=renormalize, scaling=2.5)
    logits = router_logits(33, 60, seed=1)
    ask = Ask(gating, drop_score=drop_score, expand="rank", extra=3)
    check(logits, ask, seeds=(3,))
    check(logits[:5, :8].contiguous(), Ask(gating, drop_score=drop_score), seeds=(3,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("experts", [8, 24, 60, 128, 160])
@pytest.mark.parametrize("local", [(0, 0), (0, 3), (5, 8), (7, 23), (50, 60), (0, 160)])
def test_local_candidates(dtype, experts, local):
    local = (min(local[0], experts), min(local[1], experts))
    logits = router_logits(34, experts, "levels", seed=experts).to(dtype)
    logits[3, local[0] : local[1]] = -math.inf
    check(logits, Ask(cm.Gating(4, renormalize="topk"), expand="local", local=local), seeds=(3,))


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 8), (160, 6)])
def test_candidates_by_rank(experts, top_k):
    for extra in (1, 2 * top_k, experts - top_k):
        check(router_logits(33, experts), Ask(cm.Gating(top_k), expand="rank", extra=extra))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
@pytest.mark.parametrize(
    ("experts", "groups", "chosen"),
    [(8, 4, 2), (16, 16, 7), (60, 6, 2), (160, 8, 3), (256, 8, 4), (72, 1, 1)],
)
def test_bias_and_groups(scoring, group_score, experts, groups, chosen):
    top_k = min(8, experts // groups * chosen)
    gating = cm.Gating(
        top_k=top_k,
        scoring=scoring,
        renormalize="topk",
        num_groups=groups,
        topk_groups=chosen,
        group_score=group_score,
    )
    logits = router_logits(33, experts, "distinct", seed=experts) / 4
    logits[7] = 0.0
    logits[8, : experts // 2] = -math.inf
    bias = normal((experts,), seed=6)
    check(logits, Ask(gating, bias), seeds=(3,))
    bias[experts // 3] = -math.inf
    check(logits.bfloat16(), Ask(gating, bias, expand="local", local=(2, 7)), seeds=(0,))
    if groups > 1:
        check(logits.half(), Ask(gating), seeds=(0,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("experts", [8, 60, 128, 256])
def test_numbers_that_are_none(dtype, experts):
    """NaN and -inf forbid, +inf counts as the largest float, -0 is 0."""
    logits = router_logits(40, experts).to(dtype)
    logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(3)) < 0.6] = -math.inf
    logits[0] = -math.inf
    logits[1] = math.nan
    logits[2, 5] = logits[3, 1] = logits[3, 6] = math.inf
    logits[4, ::3] = -math.nan
    logits[5] = torch.tensor([0.0, -0.0]).to(dtype).repeat(experts // 2)
    logits[6] = torch.finfo(dtype).min
    logits[7, 3], logits[7, 2] = math.inf, torch.finfo(dtype).max
    for scoring in ("softmax", "sigmoid"):
        ask = plain(4, scoring=scoring, renormalize="topk")
        check(logits, ask, seeds=(0,))
        check(logits, Ask(ask.gating, torch.full((experts,), 9.0)), seeds=(0,))


@pytest.mark.parametrize(("experts", "tokens"), [(8, 33), (5, 64), (60, 1), (64, 37), (512, 33)])
def test_cards(experts, tokens):
    """One expert is everyone's, and its card full; another is nobody's."""
    for dtype, top_k, extra in zip(DTYPES, (2, 1, 3), (0, 1, min(experts - 3, 29)), strict=True):
        logits = router_logits(tokens, experts, "levels", seed=top_k).to(dtype)
        logits[:, 3], logits[:, 2], logits[tokens // 2, :4] = 30.0, -math.inf, -math.inf
        ask = Ask(cm.Gating(top_k), expand="rank" if extra else "none", extra=extra)
        cards = check_cards(logits, ask, seed=top_k).cards
        assert tokens < 32 or cards[3, 0, 0] != cards[2, 0, 0] == 0


@pytest.mark.parametrize("experts", [513, 700])
def test_more_experts_than_registers_hold(experts):
    logits = router_logits(3, experts, "levels").bfloat16()
    check(logits, plain(8, renormalize="topk"))
    check(logits.half(), plain(3, scoring="sigmoid"), seeds=(0,))
    gating = cm.Gating(8, num_groups=27 if experts == 513 else 7, topk_groups=2)
    check(router_logits(3, experts), Ask(gating, normal((experts,)), "prob", "local", 0, (5, 9)))


def test_a_row_does_not_depend_on_its_address():
    """Logits that no 16 bytes are aligned with, and a launch without marks."""
    for dtype, experts in itertools.product(DTYPES, (8, 60, 64)):
        logits = router_logits(35, experts).to(dtype)
        shifted = torch.empty(logits.numel() + 1, dtype=dtype)[1:].view(logits.shape)
        shifted.copy_(logits)
        ask = plain(min(6, experts), renormalize="topk")
        got, other = check(logits, ask, seeds=(3,)), launch_gate(shifted, ask, marked=False)
        for name in ("ids", "weights", "scores"):
            a, b = (getattr(one, name).view(torch.int32) for one in (got, other))
            assert a.equal(b)


def test_equal_logits_have_equal_scores():
    for experts, scoring in itertools.product((8, 60, 131), ("softmax", "sigmoid")):
        logits = router_logits(16, experts, "levels", seed=experts)
        got = launch_gate(logits, plain(experts, scoring=scoring))
        ranked = logits.gather(1, got.ids.long())
        same = ranked[:, 1:] == ranked[:, :-1]
        assert same.any()
        assert (got.scores[:, 1:] == got.scores[:, :-1])[same].all()


@pytest.mark.parametrize(
    ("experts", "top_k", "tokens", "dtype", "most"),
    [
        (64, 8, 64, torch.float32, 187),
        (64, 8, 64, torch.bfloat16, 161),
        (64, 8, 1, torch.float32, 783),
        (128, 8, 32, torch.float32, 386),
        (128, 8, 1, torch.float32, 842),
        (256, 8, 32, torch.float32, 640),
        (8, 2, 64, torch.float32, 19),
        (8, 2, 1, torch.float32, 501),
    ],
)
def test_counts(experts, top_k, tokens, dtype, most):
    """PTX instructions of a warp per token, marks and keys included, and 32-byte sectors."""
    logits = normal((tokens, experts), dtype)
    got = launch_gate(logits, plain(top_k))
    assert got.counts["warp_instructions"] <= 1.05 * most * tokens
    asked = {(e, t // 8) for t, row in enumerate(got.ids.tolist()) for e in row}
    needed = logits.nbytes / 32 + 3 * got.ids.nbytes / 32 + got.asks.nbytes / 32 + len(asked)
    touched = got.counts["global_load_sectors"] + got.counts["global_store_sectors"]
    if tokens > 1:
        assert touched <= 1.3 * needed
