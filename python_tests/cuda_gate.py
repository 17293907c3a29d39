"""Launches the CUDA gate's PTX on the CPU as gate() of gate.cu would, and checks what it wrote."""

from __future__ import annotations

import re
import shutil
import struct
from dataclasses import dataclass

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from cuda_on_cpu import Const, emulate
from cuda_select import CARD, cards_of, unsigned
from cuda_sources import compiled, folder, per_sources

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

DTYPES = {torch.float32: "f", torch.bfloat16: "13__nv_bfloat16", torch.float16: "6__half"}
# Lanes of a row and experts of a lane, by the number of experts they hold: with_gate_layout().
LAYOUTS = {8: (1, 8), 16: (2, 8), 32: (4, 8), 64: (8, 8), 128: (16, 8), 256: (32, 8), 512: (32, 16)}
UNWRITTEN = 0x5A5A5A5A
TILE = 36  # words of a card in shared memory


@per_sources
def entries(name: str) -> dict[str, str]:
    """PTX of a file's kernels by mangled name, each a module of its own: quick to load."""
    ptx = compiled(folder() / name)
    shared, *kernels = re.split(r"(?m)^(?=(?:\.visible )?\.entry )", ptx)
    files = "".join(re.findall(r"(?m)^\s*\.file.*\n", kernels[-1]))
    kernels[-1] = re.split(r"(?m)^\s*\.file", kernels[-1])[0]
    return {re.search(r"entry (\w+)", one)[1]: shared + one + files for one in kernels}


@per_sources
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
    cards: torch.Tensor | None
    counters: torch.Tensor | None
    counts: dict[str, int]


def unwritten(*shape, dtype=torch.int32):
    return torch.full(shape, UNWRITTEN, dtype=torch.int32).view(dtype)


def launch_gate(logits, ask, marked=True, seed=0, cards=False):
    """What gate() of gate.cu launches, as it launches it; ``cards``: instead of asks and keys."""
    tokens, experts = logits.shape
    columns, words = ask.columns(experts), -(-tokens // 32)
    outputs = [unwritten(tokens, columns, dtype=t) for t in (torch.int32, *[torch.float32] * 2)]
    marks = [unwritten(experts, words), None, unwritten(experts, tokens), None, unwritten(4)]
    if columns > ask.gating.top_k:
        marks[1] = unwritten(experts, words)
    if cards:
        marks = [None, marks[1], None, unwritten(experts, words, CARD), marks[4]]
        outputs[2] = None  # nobody reads scores
    if not marked:
        marks = [None] * 5
    arguments = [Const(logits), ask.bias if ask.bias is None else Const(ask.bias)]
    arguments += [ask.packed(tokens, experts), *outputs, *marks]
    dtype = DTYPES[logits.dtype]
    if experts > 512:
        del arguments[-2]
        entry = kernel("gate_wide.cu", f"kernelI{dtype}E")
        configuration = (words, 32, 24 * experts)
    else:
        lanes, each = next(LAYOUTS[most] for most in LAYOUTS if most >= experts)
        fixed = 2 if experts <= 8 and columns == 2 and ask.expand != "local" else 0
        by_score = int(ask.bias is not None or ask.gating.num_groups > 1)
        entry = kernel(
            "gate.cu", f"kernelI{dtype}N", f"ILi{lanes}ELi{each}ELi{fixed}EEELb{by_score}E"
        )
        rows = 32 // lanes
        one = -(-(2 * 32 * (each + 1) + 32 * each + 2 * rows * columns) * 4 // 16) * 16
        warps = min(-(-min(tokens, 32) // rows), 16)
        while warps > 1 and warps * one > 98304:
            warps //= 2
        scratch = max(warps * one, 4 * TILE * experts if cards else 0)
        shared = scratch + (8 * experts if marked else 0) + (8 * 32 * columns if cards else 0)
        tile = (ask.local[1] - ask.local[0]) * 33 * 4
        gathers = ask.expand == "local" and marked and not cards and shared + tile <= 98304
        configuration = (words, 32 * warps, shared + tile * gathers)
        arguments += [one, scratch, int(gathers)]
    if tokens == 0:
        return Got(*outputs, *marks, {})
    # The GPU approximates ex2 and rcp otherwise than the emulator; a key is the bits of a score.
    report = entry[configuration](
        *arguments, seed=seed, on_gpu={4: 1e-5, 5: 1e-5, 8: False, 9: False}
    )
    assert report.warnings == []
    return Got(*outputs, *marks, report.counts)


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
    assert keys[got.ids[tokens, columns].long(), tokens].equal(
        order_key(got.scores)[tokens, columns]
    )
    written = torch.zeros(experts, got.ids.shape[0], dtype=torch.bool)
    written[got.ids[tokens, columns].long(), tokens] = True
    assert (keys[~written] == UNWRITTEN).all()
    assert got.counters.tolist() == [0] * 4


def check_cards(logits, ask, seed=0):
    """They say what asks and keys say; a gate that writes them says nothing else otherwise."""
    told, got = launch_gate(logits, ask, seed=seed), launch_gate(logits, ask, seed=seed, cards=True)
    for name in ("ids", "weights", "top"):
        one, other = getattr(told, name), getattr(got, name)
        assert one is other is None or one.view(torch.int32).equal(other.view(torch.int32))
    assert got.cards.equal(cards_of(told.asks, told.keys).where(written(got), got.cards))
    assert got.counters.tolist() == [0] * 4
    return got


def written(got):
    """What a card must hold; behind its keys are zeros, to the end of 16 bytes."""
    held = 1 + ((unsigned(got.cards[..., 0])[..., None] >> torch.arange(32)) & 1).sum(-1)
    places = torch.arange(CARD)
    end = (held + 3) // 4 * 4
    assert (got.cards[(places >= held[..., None]) & (places < end[..., None])] == 0).all()
    assert (got.cards[places >= end[..., None]] == UNWRITTEN).all()
    return places < held[..., None]


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
