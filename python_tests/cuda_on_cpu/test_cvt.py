"""Conversions against exact arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from cuda_on_cpu.float_reference import (
    DTYPES,
    corners,
    expect,
    operands,
    randoms,
    round_integer,
    rounded,
)
from cuda_on_cpu.ptx_snippets import random_bits, run, signed, unsigned

INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


def typed(kind, values):
    bits = int(kind[1:])
    return [signed(v, bits) if kind[0] == "s" else unsigned(v, bits) for v in values]


def bounds(kind):
    bits = int(kind[1:])
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


@pytest.mark.parametrize(("to", "of"), list(itertools.product(INTEGERS, INTEGERS)))
def test_integers(to, of):
    a = typed(of, random_bits(int(of[1:]), 64, seed=50))
    assert run(f"cvt.{to}.{of} d, a;", to, (of, a)) == typed(to, a)
    low, high = bounds(to)
    if low > bounds(of)[0] or high < bounds(of)[1]:
        got = run(f"cvt.sat.{to}.{of} d, a;", to, (of, a))
        assert got == [min(max(x, low), high) for x in a]


@pytest.mark.parametrize("to", ["u8", "s8", "u16", "s16"])
def test_narrow_results_are_extended_in_a_wide_register(to):
    a = random_bits(32, 64, seed=51)
    got = run(f"cvt.{to}.u32 d, a;", "s32", ("u32", a))
    assert got == typed(to, a)


ROUND = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


@pytest.mark.parametrize("mode", ROUND)
@pytest.mark.parametrize(("to", "of"), list(itertools.product(INTEGERS[2:], ["f16", "f32", "f64"])))
def test_floats_to_integers_saturate(to, of, mode):
    low, high = bounds(to)
    edges = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0, 0.9999, -0.0001, math.inf, -math.inf]
    edges += [float(v) * f for v in (low, high) for f in (0.5, 0.9, 1.0, 1.1, 2.0)]
    a = torch.cat(
        [
            torch.tensor(edges, dtype=torch.float64).to(DTYPES[of]),
            randoms(of, 64, seed=52),
            randoms(of, 64, seed=53, spread=15 if of == "f16" else 63),
        ]
    )
    got = run(f"cvt.{mode}.{to}.{of} d, a;", to, (of, a))
    for x, result in zip(a.tolist(), got, strict=True):
        if math.isinf(x):
            want = high if x > 0 else low
        else:
            want = min(max(round_integer(Fraction(x), ROUND[mode]), low), high)
        assert result == want, x


@pytest.mark.parametrize(
    ("to", "of"), list(itertools.product(["s32", "u32", "s64"], ["f32", "f64"]))
)
def test_nan_to_integer(to, of):
    """Zero, but the top bit where either side has 64 bits."""
    a = torch.full((32,), math.nan, dtype=DTYPES[of])
    bits = int(to[1:])
    top = typed(to, [1 << bits - 1])[0]
    want = 0 if of == "f32" and bits == 32 else top
    assert run(f"cvt.rzi.{to}.{of} d, a;", to, (of, a)) == [want] * 32


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize(("to", "of"), list(itertools.product(["f32", "f64"], INTEGERS)))
def test_integers_to_floats(to, of, mode):
    a = typed(of, random_bits(int(of[1:]), 128, seed=54))
    got = run(f"cvt.{mode}.{to}.{of} d, a;", to, (of, a)).tolist()
    assert got == [rounded(Fraction(x), to, mode) for x in a]


@pytest.mark.parametrize("of", ["u16", "s16", "u32", "s64"])
def test_integers_to_f16(of):
    a = typed(of, random_bits(int(of[1:]), 128, seed=55))
    got = run(f"cvt.rn.f16.{of} d, a;", "f16", (of, a)).tolist()
    assert got == [rounded(Fraction(x), "f16") for x in a]


def wide_values(of, to):
    """Values of one format around what the other can hold, and halfway between its numbers."""
    edge = torch.tensor(corners(to), dtype=torch.float64)
    step = edge.abs() * 2.0 ** -{"f16": 11, "bf16": 8, "f32": 24}[to]
    nudges = [edge, edge + step, edge - step, edge + 1.5 * step, edge + 1.01 * step]
    nudges += [randoms("f64", 200, seed=56, spread=18)]
    values = torch.cat(nudges).to(DTYPES[of])
    return values[values.isfinite()]


@pytest.mark.parametrize(
    ("to", "of", "mode"),
    [("f16", "f32", m) for m in ("rn", "rz")]
    + [("bf16", "f32", m) for m in ("rn", "rz")]
    + [("f32", "f64", m) for m in ("rn", "rz", "rm", "rp")]
    + [("f16", "f64", m) for m in ("rn", "rz")],
)
def test_narrowing(to, of, mode):
    a = wide_values(of, to)
    got = run(f"cvt.{mode}.{to}.{of} d, a;", to, (of, a))
    expect(got, lambda x: rounded(Fraction(x), to, mode), a)
    special = torch.tensor([math.inf, -math.inf, math.nan, -0.0], dtype=DTYPES[of])
    got = run(f"cvt.{mode}.{to}.{of} d, a;", to, (of, special))
    expect(got, lambda x: x, special, bitwise=True)


@pytest.mark.parametrize(("to", "of"), [("f32", "f16"), ("f64", "f16"), ("f64", "f32")])
def test_widening_is_exact(to, of):
    a = torch.cat([*operands(of, 1), torch.tensor([math.inf, math.nan, -0.0], dtype=DTYPES[of])])
    expect(run(f"cvt.{to}.{of} d, a;", to, (of, a)), lambda x: x, a, bitwise=True)


def test_every_bf16_widens_exactly():
    for start in range(0, 1 << 16, 1 << 12):
        bits = torch.arange(start, start + (1 << 12), 4).to(torch.int16).view(torch.bfloat16)
        got = run("mov.b16 h0, 0; mov.b32 d, {h0, a};", "f32", ("bf16", bits))
        torch.testing.assert_close(got, bits.float(), rtol=0, atol=0, equal_nan=True)


def test_cvt_f32_bf16():
    """An sm_90 instruction, which later headers use."""
    a = torch.cat([*operands("bf16", 1), torch.tensor([math.inf, math.nan]).bfloat16()])
    got = run("cvt.f32.bf16 d, a;", "f32", ("bf16", a), target="sm_90")
    expect(got, lambda x: x, a, bitwise=True)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("relu", ["", ".relu"])
def test_two_floats_to_a_packed_pair(kind, mode, relu):
    """The first operand becomes the upper half."""
    a = wide_values("f32", kind)
    b = a.flip(0).contiguous()
    inputs = [("f32", a), ("f32", b)]
    got = run(f"cvt.{mode}{relu}.{kind}x2.f32 d, a, b;", f"{kind}x2", *inputs)

    def reference(x):
        result = rounded(Fraction(x), kind, mode)
        return max(result, 0.0) if relu else result

    expect(got[:, 1], reference, a)
    expect(got[:, 0], reference, b)


def test_tf32_rounds_ties_away():
    """Ten bits of mantissa remain; what is below them is not specified."""
    values = torch.tensor(
        [1 + k * 2.0**-12 for k in range(16)] + [-1 - k * 2.0**-11 for k in range(8)]
    )
    a = torch.cat([values, randoms("f32", 200, seed=57, spread=60)])
    got = run("cvt.rna.tf32.f32 d, a;", "b32", ("f32", a))
    for x, result in zip(a.tolist(), got, strict=True):
        step = Fraction(2) ** (math.frexp(x)[1] - 11)
        want = float(round_integer(Fraction(x) / step, "rna") * step)
        top = torch.tensor([want]).view(torch.int32).item() & 0xFFFFE000
        assert result & 0xFFFFE000 == top & 0xFFFFFFFF, x


@pytest.mark.parametrize("mode", ROUND)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_rounding_to_an_integral_float(mode, kind):
    a = torch.cat(
        [torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e30]).to(DTYPES[kind]), randoms(kind, 99, 58)]
    )
    got = run(f"cvt.{mode}.{kind}.{kind} d, a;", kind, (kind, a))
    expect(got, lambda x: float(round_integer(Fraction(x), ROUND[mode])), a)


def test_sat_and_ftz():
    a = torch.tensor([-1.0, 0.25, 3.0, math.nan, 1e-40])
    got = run("cvt.sat.f32.f32 d, a;", "f32", ("f32", a))
    assert got.tolist()[:4] == [0.0, 0.25, 1.0, 0.0]
    assert run("cvt.ftz.f64.f32 d, a;", "f64", ("f32", a)).tolist()[4] == 0.0
    assert run("cvt.f64.f32 d, a;", "f64", ("f32", a)).tolist()[4] > 0.0
