"""The Triton gate, its PTX run on the CPU, against the reference."""

from __future__ import annotations

import math
import sys

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from cases import normal, router_logits
from checks import same_bits

pytest.importorskip("triton")

from capmoe_kernels import triton_kernels
from cuda_on_cpu.runtime import recording
from cuda_on_cpu.runtime.triton_launch import triton_emulation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FIRST, SECOND = ("sm_80", 0), ("sm_90", 3)  # architectures and schedules


@pytest.fixture(autouse=True)
def _unwritten_is_nan(poison):
    """A column that no thread writes is seen."""


@pytest.fixture
def long_programs(monkeypatch):
    """As where tokens are many."""
    monkeypatch.setattr(sys.modules[triton_kernels.gate.__module__], "_SPARE_PROGRAMS", 0)


def run(logits, bias, options, where=FIRST):
    arch, seed = where
    with triton_emulation(arch=arch, seed=seed), recording() as record:
        out = triton_kernels.gate(logits, bias, *options)
    assert record.names == ["gate_kernel"] * (logits.shape[0] > 0)
    assert record.warnings == []
    return out, record.counts


def options_of(gating, drop_score="prob", expand="none", extra=0, local=(0, 0)):
    g = gating
    groups = (g.num_groups, g.topk_groups, g.group_score)
    weighing = (g.top_k, g.scoring, g.renormalize, float(g.scaling))
    return (*weighing, *groups, drop_score, expand, extra, *local)


def check(logits, gating, bias=None, wheres=(FIRST, SECOND), **more):
    """ids exactly, floats within a few roundings, and the same bits under every schedule."""
    options = options_of(gating, **more)
    ids, *floats = reference.gate(logits, bias, *options)
    first = None
    for where in wheres:
        got, _ = run(logits, bias, options, where)
        assert got[0].dtype == torch.int32
        assert got[0].equal(ids)
        for out, truth in zip(got[1:], floats, strict=True):
            torch.testing.assert_close(out, truth, rtol=3e-6, atol=1e-30)
            assert (out[ids == logits.shape[1]] == 0).all()
        if first is not None:
            assert all(map(same_bits, first, got))
        first = got
    return first


@pytest.mark.parametrize("experts", [1, 2, 31, 512])
def test_experts_and_top_k(experts):
    for top_k, dtype, style, where in (
        (1, torch.float32, "levels", FIRST),
        (6, torch.float32, "gaussian", SECOND),
        (8, torch.float16, "levels", FIRST),
    ):
        logits = router_logits(9, experts, style, seed=top_k).to(dtype)
        check(logits, cm.Gating(min(top_k, experts)), wheres=(where,))


@pytest.mark.parametrize(("experts", "dtype"), [(5, torch.float32), (60, torch.bfloat16)])
def test_all_experts_in_order(experts, dtype):
    gating = cm.Gating(1, renormalize="topk")
    more = {"expand": "rank", "extra": experts - 1}
    check(router_logits(3, experts, "levels").to(dtype), gating, **more)


@pytest.mark.parametrize("tokens", [0, 1, 2, 33, 130])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 8)])
def test_tokens(tokens, experts, top_k):
    logits = router_logits(tokens, experts, seed=tokens)
    check(logits, cm.Gating(top_k), wheres=(FIRST, ("sm_80", 3)))


@pytest.mark.parametrize(("experts", "top_k"), [(64, 8), (60, 6)])
def test_long_programs_give_the_same_bits(experts, top_k, request):
    logits, bias = router_logits(37, experts), normal((experts,)) if experts == 60 else None
    gating = cm.Gating(top_k)
    short, short_counts = run(logits, bias, options_of(gating))
    request.getfixturevalue("long_programs")
    long, long_counts = run(logits, bias, options_of(gating))
    assert all(map(same_bits, long, short))
    assert long_counts["warp_instructions"] < short_counts["warp_instructions"]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", ["none", "topk", "kept"])
@pytest.mark.parametrize("drop_score", ["prob", "weight"])
def test_scores_and_weights(scoring, renormalize, drop_score):
    gating = cm.Gating(3, scoring=scoring, renormalize=renormalize, scaling=2.5)
    bias = normal((8,)) if drop_score == "prob" else None
    more = {"drop_score": drop_score, "expand": "rank", "extra": 1}
    where = FIRST if scoring == "softmax" else SECOND
    check(router_logits(17, 8, seed=1), gating, bias, wheres=(where,), **more)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("local", [(0, 0), (5, 8), (11, 12), (0, 12)])
def test_local_candidates(dtype, local):
    logits = router_logits(9, 12, "levels").to(dtype)
    logits[3, slice(*local)] = -math.inf
    logits[4, 2:] = -math.inf
    check(
        logits,
        cm.Gating(4, renormalize="topk"),
        expand="local",
        local=local,
        wheres=(FIRST if dtype == torch.float32 else SECOND,),
    )


@pytest.mark.parametrize(
    ("experts", "groups", "chosen", "scoring", "group_score"),
    [
        (8, 4, 2, "softmax", "max"),
        (12, 12, 7, "softmax", "top2_sum"),
        (60, 6, 2, "softmax", "top2_sum"),
        (12, 3, 2, "sigmoid", "max"),
        (256, 8, 4, "sigmoid", "top2_sum"),
    ],
)
def test_bias_and_groups(experts, groups, chosen, scoring, group_score):
    gating = cm.Gating(
        top_k=min(8, experts // groups * chosen),
        scoring=scoring,
        renormalize="topk",
        num_groups=groups,
        topk_groups=chosen,
        group_score=group_score,
    )
    logits = router_logits(9, experts, "distinct", seed=experts) / 4
    logits[7] = 0.0
    logits[8, : experts // 2] = -math.inf
    bias = normal((experts,), seed=6)
    check(logits, gating, bias, wheres=(FIRST,))
    check(logits.half(), gating, wheres=(SECOND,))
    if experts == 12:
        bias[experts // 3], bias[experts // 5] = -math.inf, math.nan
        logits = logits.bfloat16()
        check(logits, gating, bias, expand="local", local=(2, 7), wheres=(FIRST,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_that_are_none(dtype):
    """NaN and -inf forbid, +inf counts as the largest float, -0 is 0."""
    logits = router_logits(40, 12).to(dtype)
    logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(3)) < 0.6] = -math.inf
    logits[0] = -math.inf
    logits[1] = math.nan
    logits[2, 5] = logits[3, 1] = logits[3, 6] = math.inf
    logits[4, ::3] = -math.nan
    logits[5] = torch.tensor([0.0, -0.0]).to(dtype).repeat(6)
    logits[6] = torch.finfo(dtype).min
    logits[7, 3], logits[7, 2] = math.inf, torch.finfo(dtype).max
    check(logits, cm.Gating(4, renormalize="topk"), wheres=(FIRST,))
    gating = cm.Gating(4, scoring="sigmoid", renormalize="topk")
    check(logits, gating, wheres=(SECOND,))
    if dtype == torch.bfloat16:
        check(logits, gating, torch.full((12,), 9.0), wheres=(SECOND,))


def far_apart(experts):
    """Rows whose best logits are further apart than short entries hold, and rows that just fit."""
    logits = router_logits(7, experts, "distinct") - 100
    logits[0, 3], logits[0, 5], logits[0, 7] = 1e-30, -1e-30, -1.0
    logits[1, 3] = 3e38
    logits[2, : experts // 2] = -3e38
    logits[2, experts // 2 :] = torch.linspace(-3.4e38, -3.3e38, experts - experts // 2)
    reach = 2**31 // experts - 1
    best = torch.tensor(2.0).view(torch.int32)
    for row, below in ((3, 2 * reach - 2), (4, 2 * reach - 1), (5, 2 * reach), (6, 2 * reach + 1)):
        far = (best - below).view(torch.float32)
        logits[row] = -torch.inf
        logits[row, 4], logits[row, 6] = 2.0, far
        logits[row, 9], logits[row, 8] = far, torch.nextafter(far, torch.tensor(9.0))
    return logits


def test_experts_far_below_the_best():
    """Each row for itself, and all in one program."""
    logits = far_apart(32)
    for rows in (*logits.split(1), logits):
        check(rows, cm.Gating(4), wheres=(FIRST,))
    bias = torch.zeros(32)
    bias[11], bias[20] = 1e20, math.inf
    check(router_logits(6, 32), cm.Gating(8, scoring="sigmoid"), bias, wheres=(SECOND,))


def test_one_ulp_decides():
    """Also where the lowest bits of logits are all that differs."""
    steps = torch.randperm(64, generator=torch.Generator().manual_seed(1)) // 2
    logits = (torch.ones(4, 64).view(torch.int32) + steps).view(torch.float32)
    check(torch.cat([logits, -logits]), cm.Gating(8), wheres=(FIRST,))


@pytest.mark.parametrize(("experts", "groups"), [(513, 27), (1100, 1)])
def test_more_experts_than_registers_hold(experts, groups):
    gating = cm.Gating(8, num_groups=groups, topk_groups=1 if groups == 1 else 2)
    local = (5, 9) if groups > 1 else (0, 0)
    logits = router_logits(3, experts, "levels").bfloat16()
    check(logits, gating, expand="local", local=local, wheres=(SECOND,))


def test_too_many_experts():
    with pytest.raises(ValueError, match="at most 4096 experts, got 4097"):
        run(torch.zeros(1, 4097), None, options_of(cm.Gating(2)))


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(
    ("experts", "top_k", "most", "most_of_long"), [(8, 2, 12, 12), (64, 8, 128, 81)]
)
def test_counts(experts, top_k, most, most_of_long, long, request):
    """PTX instructions of a warp per token, and 32-byte sectors: no column is written twice."""
    if long:
        request.getfixturevalue("long_programs")
    logits = normal((64, experts))
    out, counts = run(logits, None, options_of(cm.Gating(top_k)))
    assert counts["warp_instructions"] <= (most_of_long if long else most) * 64
    assert counts["global_store_sectors"] == sum(x.nbytes for x in out) / 32
    if experts == 64:
        assert counts["global_load_sectors"] == logits.nbytes / 32
