"""Exchanges and votes within a warp."""

from __future__ import annotations

import operator
from functools import reduce

import pytest
import torch

from cuda_on_cpu.errors import EmulationError
from cuda_on_cpu.ptx_snippets import launch, random_bits, run, signed

FULL = "0xffffffff"
VALUES = random_bits(32, 32, seed=80, extremes=False)


def shuffle_source(mode, lane, operand, packed):
    """The lane that is read and whether it is in range, by the ISA's pseudo-code."""
    operand, clamp, segment = operand & 31, packed & 31, packed >> 8 & 31
    highest = lane & segment | clamp & ~segment & 31
    lowest = lane & segment
    if mode == "up":
        source = lane - operand
        valid = source >= highest
    elif mode == "idx":
        source = lowest | operand & ~segment & 31
        valid = source <= highest
    else:
        source = lane + operand if mode == "down" else lane ^ operand
        valid = source <= highest
    return (source if valid else lane), valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 1])
def test_shfl(mode, width):
    """The widths of the CUDA function, each with every operand."""
    packed = 32 - width << 8 | (0 if mode == "up" else 31)
    for operand in range(33):
        code = f"shfl.sync.{mode}.b32 d|e, a, {operand}, {packed}, {FULL};"
        got, valid = run(code, ("u32", "pred"), ("u32", VALUES))
        want = [shuffle_source(mode, lane, operand, packed) for lane in range(32)]
        assert got == [VALUES[source] for source, _ in want], operand
        assert valid == [int(v) for _, v in want], operand


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("packed", [0x1F, 0x0B, 0x1807, 0x1C03, 0x0F1F, 0x101A, 0])
def test_shfl_clamps_and_segments(mode, packed):
    operands = [(7 * i + 3) % 32 for i in range(32)] if mode == "idx" else [3] * 32
    code = f"shfl.sync.{mode}.b32 d|e, a, b, {packed}, {FULL};"
    got, valid = run(code, ("u32", "pred"), ("u32", VALUES), ("u32", operands))
    want = [shuffle_source(mode, lane, operands[lane], packed) for lane in range(32)]
    assert got == [VALUES[source] for source, _ in want]
    assert valid == [int(v) for _, v in want]


def test_shfl_by_half_warps():
    """Two masks name two groups that shuffle on their own paths."""
    code = """
        setp.lt.u32 p0, tid, 16; @!p0 bra UPPER;
        shfl.sync.bfly.b32 d, a, 1, 31, 0x0000ffff; bra.uni DONE;
        UPPER: shfl.sync.bfly.b32 d, a, 2, 31, 0xffff0000;
        DONE:
    """
    got = run(code, "u32", ("u32", VALUES))
    assert got == [VALUES[i ^ (1 if i < 16 else 2)] for i in range(32)]


@pytest.mark.parametrize("seed", range(3))
def test_lanes_of_different_branches_meet_at_a_shuffle(seed):
    """Both sides of a branch execute a shuffle of one mask after work of their own."""
    code = """
        mov.u32 t0, a; and.b32 t1, tid, 1; setp.eq.u32 p0, t1, 0; @p0 bra JOIN;
        mul.lo.u32 t0, t0, 3; setp.gt.u32 p1, tid, 20; @p1 bra JOIN; add.u32 t0, t0, 1;
        JOIN: shfl.sync.idx.b32 t2, t0, 31, 31, 0xffffffff;
        shfl.sync.bfly.b32 t3, t0, 1, 31, 0xffffffff; sub.u32 d, t3, t2;
    """
    own = [v if i % 2 == 0 else 3 * v + (i <= 20) for i, v in enumerate(VALUES)]
    got = run(code, "u32", ("u32", VALUES), seed=seed)
    assert got == [(own[i ^ 1] - own[31]) % 2**32 for i in range(32)]


def test_partial_mask_inside_a_branch():
    code = f"""
        mov.u32 d, 0; setp.lt.u32 p0, tid, 5; @!p0 bra DONE;
        shfl.sync.down.b32 d, a, 1, 31, 31; vote.sync.ballot.b32 t0, 1, 31; add.u32 d, d, t0;
        DONE: bar.warp.sync {FULL};
    """
    # Lane 4 asks a lane outside the mask, whose answer is undefined.
    got = run(code, "u32", ("u32", [i * 100 for i in range(32)]), on_gpu=False)
    assert got[:4] == [131, 231, 331, 431]
    assert got[5:] == [0] * 27


PATTERNS = [0, 2**32 - 1, 1, 1 << 31, 0xF0F0A5A5, 2**32 - 2]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("negate", ["", "!"])
def test_vote(pattern, negate):
    bits = [pattern >> i & 1 for i in range(32)]
    seen = [1 - b for b in bits] if negate else bits
    answers = {
        "all": int(all(seen)),
        "any": int(any(seen)),
        "uni": int(len(set(seen)) == 1),
    }
    setp = "setp.ne.u32 p0, a, 0; "
    for name, want in answers.items():
        got = run(f"{setp} vote.sync.{name}.pred d, {negate}p0, {FULL};", "pred", ("u32", bits))
        assert got == [want] * 32, name
    got = run(f"{setp} vote.sync.ballot.b32 d, {negate}p0, {FULL};", "u32", ("u32", bits))
    assert got == [sum(b << i for i, b in enumerate(seen))] * 32


def test_ballot_of_a_part_of_the_warp():
    code = """
        mov.u32 d, 0; setp.ne.u32 p0, a, 0; and.b32 t0, tid, 3; setp.ne.u32 p1, t0, 1;
        @p1 bra DONE; vote.sync.ballot.b32 d, p0, 0x22222222; DONE:
    """
    got = run(code, "u32", ("u32", [i >> 2 & 1 for i in range(32)]))
    want = sum(1 << i for i in range(32) if i % 4 == 1 and i >> 2 & 1)
    assert got == [want if i % 4 == 1 else 0 for i in range(32)]


@pytest.mark.parametrize("bits", [32, 64])
def test_match_any(bits):
    a = [(i * 5) % 7 << (bits - 4) for i in range(32)]
    got = run(f"match.any.sync.b{bits} d, a, {FULL};", "u32", (f"u{bits}", a))
    assert got == [sum(1 << j for j in range(32) if a[j] == x) for x in a]


@pytest.mark.parametrize("bits", [32, 64])
def test_match_all(bits):
    code = f"match.all.sync.b{bits} d|e, a, {FULL};"
    for last, mask in ((9, 2**32 - 1), (8, 0)):
        a = [9 << bits - 5] * 31 + [last << bits - 5]
        got, all_equal = run(code, ("u32", "pred"), (f"u{bits}", a))
        assert got == [mask] * 32
        assert all_equal == [int(mask > 0)] * 32


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("add.u32", lambda v: sum(v) % 2**32),
        ("add.s32", lambda v: sum(v) % 2**32),
        ("min.u32", min),
        ("max.u32", max),
        ("min.s32", lambda v: min(signed(x, 32) for x in v) % 2**32),
        ("max.s32", lambda v: max(signed(x, 32) for x in v) % 2**32),
        ("and.b32", lambda v: reduce(operator.and_, v)),
        ("or.b32", lambda v: reduce(operator.or_, v)),
        ("xor.b32", lambda v: reduce(operator.xor, v)),
    ],
)
def test_redux(name, reference):
    assert run(f"redux.sync.{name} d, a, {FULL};", "u32", ("u32", VALUES)) == (
        [reference(VALUES)] * 32
    )
    code = f"mov.u32 d, 0; setp.gt.u32 p0, tid, 6; @!p0 redux.sync.{name} d, a, 127;"
    got = run(code, "u32", ("u32", VALUES))
    assert got == [reference(VALUES[:7])] * 7 + [0] * 25


def test_activemask_is_a_set_of_lanes_that_holds_oneself():
    code = "mov.u32 d, 0; and.b32 t0, tid, 1; setp.eq.u32 p0, t0, 0; @p0 activemask.b32 d;"
    got = run(code, "u32", ("u32", VALUES))
    for lane, mask in enumerate(got):
        assert mask & ~0x55555555 == 0
        assert mask >> lane & 1 == (lane + 1) % 2


@pytest.mark.parametrize("mask", [2**32 - 1, 0xFFFF0000, 0x80000000])
def test_elect_picks_one_lane(mask):
    """An instruction of sm_90: one lane of the mask is told that it leads, all learn which."""
    code = f"""
        mov.u32 d, 99; setp.ne.u32 e, 0, 0; shr.u32 t0, {mask}, tid; and.b32 t0, t0, 1;
        setp.eq.u32 p1, t0, 0; @p1 bra DONE; elect.sync d|e, {mask}; DONE:
    """
    leader, elected = run(code, ("u32", "pred"), ("u32", VALUES), target="sm_90")
    members = [i for i in range(32) if mask >> i & 1]
    assert {leader[i] for i in members} == {leader[members[0]]}
    assert leader[members[0]] in members
    assert [i for i in range(32) if elected[i]] == [leader[members[0]]]


def test_special_registers():
    code = """
        mov.u32 t0, %laneid; mov.u32 t1, %warpid; mov.u32 t2, %ntid.x; mov.u32 t3, %ctaid.x;
        mov.u32 t4, %lanemask_lt; mov.u32 t5, %lanemask_ge; popc.b32 t4, t4; popc.b32 t5, t5;
        mad.lo.u32 d, t1, 100, t0; mad.lo.u32 e, t4, 100, t5; add.u32 e, e, t3;
        mad.lo.u32 d, t2, 10000, d;
    """
    # On a GPU %warpid is whichever place the warp was given.
    d, e = run(code, ("u32", "u32"), ("u32", VALUES * 3), on_gpu=False)
    assert d == [960000 + i // 32 * 100 + i % 32 for i in range(96)]
    assert e == [i % 32 * 100 + 32 - i % 32 for i in range(96)]


@pytest.mark.parametrize("name", ["eq", "le", "lt", "ge", "gt"])
def test_lane_masks(name):
    got = run(f"mov.u32 d, %lanemask_{name};", "u32", ("u32", VALUES))
    compare = getattr(operator, name)
    assert got == [sum(1 << j for j in range(32) if compare(j, lane)) for lane in range(32)]


@pytest.mark.parametrize(
    "code",
    [
        "shfl.sync.idx.b32 t0, tid, 0, 31, {};",
        "vote.sync.ballot.b32 t0, 1, {};",
        "redux.sync.add.u32 t0, tid, {};",
        "match.any.sync.b32 t0, tid, {};",
        "bar.warp.sync {};",
    ],
)
def test_a_lane_must_be_in_its_own_mask(code):
    launch(code.format(0xFF), block=8)
    with pytest.raises(EmulationError):
        launch(code.format(0xFF), block=9)


def test_a_short_last_warp():
    """Lanes that do not exist take no part and are not waited for."""
    mask = (1 << 8) - 1
    code = f"""
        setp.lt.u32 p0, tid, 32; mov.u32 t0, {FULL}; @!p0 mov.u32 t0, {mask};
        shfl.sync.bfly.b32 d, a, 1, 31, t0; vote.sync.ballot.b32 e, 1, t0;
    """
    d, e = run(code, ("u32", "u32"), ("u32", VALUES + VALUES[:8]))
    assert d == [(VALUES + VALUES[:8])[i ^ 1] for i in range(40)]
    assert e == [2**32 - 1] * 32 + [mask] * 8


def test_float_reduction_through_shuffles():
    a = torch.arange(32, dtype=torch.float32) / 4
    steps = "".join(
        f"mov.b32 t0, f0; shfl.sync.bfly.b32 t1, t0, {n}, 31, {FULL}; mov.b32 f1, t1;"
        "add.f32 f0, f0, f1;"
        for n in (16, 8, 4, 2, 1)
    )
    got = run(f"mov.f32 f0, a; {steps} mov.f32 d, f0;", "f32", ("f32", a))
    assert got.tolist() == [a.sum().item()] * 32
