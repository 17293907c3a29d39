"""The CUDA gate, its PTX executed on the CPU: against the reference, and what it marks for select."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from cases import normal, router_logits
from cuda_on_cpu import Const, compile_cuda, emulate

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

CUDA = Path(__file__).parent.parent / "csrc" / "cuda"
DTYPES = {torch.float32: "f", torch.bfloat16: "13__nv_bfloat16", torch.float16: "6__half"}
# Lanes of a row and experts of a lane, by the number of experts they hold: with_gate_layout().
LAYOUTS = {8: (1, 8), 16: (2, 8), 32: (4, 8), 64: (8, 8), 128: (16, 8), 256: (32, 8), 512: (32, 16)}
UNWRITTEN = 0x5A5A5A5A


@functools.cache
def entries(name: str) -> dict[str, str]:
    """PTX of a file's kernels by mangled name, each a module of its own: quick to load."""
    headers = b"".join(path.read_bytes() for path in sorted(CUDA.glob("*.*h")))
    stamp = hashlib.sha256(headers).hexdigest()[:12]
    ptx = compile_cuda(CUDA / name, flags=(f"-DCAPMOE_HEADERS=0x{stamp}",))
    shared, *kernels = re.split(r"(?m)^(?=(?:\.visible )?\.entry )", ptx)
    files = "".join(re.findall(r"(?m)^\s*\.file.*\n", kernels[-1]))
    kernels[-1] = re.split(r"(?m)^\s*\.file", kernels[-1])[0]
    return {re.search(r"entry (\w+)", one)[1]: shared + one + files for one in kernels}


@functools.cache
def kernel(name: str, *marks: str):
    """The only kernel of the file whose mangled name has all these parts."""
    found = [one for one in entries(name) if all(mark in one for mark in marks)]
    assert len(found) == 1, (marks, found)
    return emulate(entries(name)[found[0]], found[0])


@dataclass
class Ask:
    """A call of capmoe::gate."""

    gating: cm.Gating
    bias: torch.Tensor | None = None
    drop_score: str = "prob"
    expand: str = "none"
    extra: int = 0
    local: tuple[int, int] = (0, 0)

    def expected(self, logits):
        g = self.gating
        return reference.gate(
            logits,
            self.bias,
            g.top_k,
            g.scoring,
            g.renormalize,
            g.scaling,
            g.num_groups,
            g.topk_groups,
            g.group_score,
            self.drop_score,
            self.expand,
            self.extra,
            *self.local,
        )

    def columns(self, num_experts):
        more = self.local[1] - self.local[0] if self.expand == "local" else self.extra
        return min(num_experts, self.gating.top_k + more)

    def packed(self, tokens, num_experts):
        """struct Gate."""
        g = self.gating
        sizes = (tokens, num_experts, self.columns(num_experts), g.top_k)
        groups = (g.num_groups, g.topk_groups, *self.local)
        kinds = (
            ("none", "local", "rank").index(self.expand),
            ("none", "topk", "kept").index(g.renormalize),
        )
        by_weight = self.drop_score == "weight" and g.renormalize != "none"
        flags = (g.scoring == "sigmoid", g.group_score == "top2_sum", by_weight)
        return struct.pack("8q2i3?xf", *sizes, *groups, *kinds, *flags, g.scaling)


@dataclass
class Got:
    """What a launch wrote. The marks are None where there were none."""

    ids: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    asks: torch.Tensor | None
    top: torch.Tensor | None
    keys: torch.Tensor | None
    counters: torch.Tensor | None
    counts: dict[str, int]


def unwritten(*shape, dtype=torch.int32):
    return torch.full(shape, UNWRITTEN, dtype=torch.int32).view(dtype)


def launch_gate(logits, ask, marked=True, seed=0):
    """What gate() of gate.cu launches, as it launches it."""
    tokens, experts = logits.shape
    columns, words = ask.columns(experts), -(-tokens // 32)
    outputs = [unwritten(tokens, columns, dtype=t) for t in (torch.int32, *[torch.float32] * 2)]
    marks = [unwritten(experts, words), None, unwritten(experts, tokens), unwritten(4)]
    if columns > ask.gating.top_k:
        marks[1] = unwritten(experts, words)
    if not marked:
        marks = [None] * 4
    arguments = [Const(logits), ask.bias if ask.bias is None else Const(ask.bias)]
    arguments += [ask.packed(tokens, experts), *outputs, *marks]
    dtype = DTYPES[logits.dtype]
    if experts > 512:
        entry = kernel("gate_wide.cu", f"kernelI{dtype}E")
        configuration = (words, 32, 24 * experts)
    else:
        lanes, each = next(LAYOUTS[most] for most in LAYOUTS if most >= experts)
        by_score = int(ask.bias is not None or ask.gating.num_groups > 1)
        entry = kernel("gate.cu", f"kernelI{dtype}N", f"ILi{lanes}ELi{each}EEELb{by_score}E")
        rows = 32 // lanes
        one = -(-(2 * 32 * (each + 1) + 32 * each + 2 * rows * columns) * 4 // 16) * 16
        warps = min(-(-min(tokens, 32) // rows), 16)
        while warps > 1 and warps * one > 98304:
            warps //= 2
        shared = warps * one + (8 * experts if marked else 0)
        tile = (ask.local[1] - ask.local[0]) * 33 * 4
        gathers = ask.expand == "local" and marked and shared + tile <= 98304
        configuration = (words, 32 * warps, shared + tile * gathers)
        arguments += [one, int(gathers)]
    if tokens == 0:
        return Got(*outputs, *marks, {})
    report = entry[configuration](*arguments, seed=seed)
    assert report.warnings == []
    return Got(*outputs, *marks, report.counts)


def unsigned(x):
    return x.long() & 0xFFFFFFFF


def order_key(scores):
    bits = unsigned((scores + 0.0).view(torch.int32))
    return torch.where(bits >> 31 == 1, 0xFFFFFFFF - bits, bits | 0x80000000)


def bit_rows(ids, experts):
    """[E, W]: the marks that these columns make."""
    tokens = ids.shape[0]
    asked = torch.zeros(experts + 1, -(-tokens // 32) * 32, dtype=torch.int64)
    asked[ids.long(), torch.arange(tokens)[:, None]] = 1
    return (asked[:experts].view(experts, -1, 32) << torch.arange(32)).sum(2)


def check_marks(got, top_k):
    experts = got.asks.shape[0]
    assert unsigned(got.asks).equal(bit_rows(got.ids, experts))
    if got.top is not None:
        assert unsigned(got.top).equal(bit_rows(got.ids[:, :top_k], experts))
    tokens, columns = (got.ids < experts).nonzero(as_tuple=True)
    keys = unsigned(got.keys)
    assert keys[got.ids[tokens, columns].long(), tokens].equal(order_key(got.scores)[tokens, columns])
    written = torch.zeros(experts, got.ids.shape[0], dtype=torch.bool)
    written[got.ids[tokens, columns].long(), tokens] = True
    assert (keys[~written] == UNWRITTEN).all()
    assert got.counters.tolist() == [0] * 4


def check(logits, ask, marked=True, seeds=(0, 3)):
    """Against the reference, under some schedules; returns the first launch."""
    first = None
    for seed in seeds:
        got = launch_gate(logits, ask, marked, seed)
        ids, weights, scores = ask.expected(logits)
        assert got.ids.equal(ids)
        used = ids < logits.shape[1]
        for out, truth in ((got.weights, weights), (got.scores, scores)):
            torch.testing.assert_close(out[used], truth[used], rtol=3e-6, atol=1e-30)
            assert (out[~used] == 0).all()
        if marked and logits.shape[0]:
            check_marks(got, ask.gating.top_k)
        first = first or got
        for name in ("ids", "weights", "scores", "asks", "top"):
            one, other = getattr(first, name), getattr(got, name)
            assert one is other is None or one.view(torch.int32).equal(other.view(torch.int32))
    return first


def plain(top_k, **options):
    return Ask(cm.Gating(top_k=top_k, **options))


@pytest.mark.parametrize("experts", [1, 2, 8, 16, 31, 60, 64, 72, 128, 160, 256, 512])
def test_experts_and_top_k(experts):
    dtypes = itertools.cycle(DTYPES)
    for top_k in sorted({k for k in (1, 2, 6, 8, 16, experts) if k <= experts}):
        for style in ("gaussian", "levels"):
            logits = router_logits(33, experts, style, seed=top_k).to(next(dtypes))
            check(logits, plain(top_k), seeds=(0,))


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
