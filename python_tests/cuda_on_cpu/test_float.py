"""f32 and f64 arithmetic against exactly computed, once rounded results."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from cuda_on_cpu.float_reference import DTYPES, FORMATS, expect, operands, rounded, square_root
from cuda_on_cpu.ptx_snippets import run

MODES = ["rn", "rz", "rm", "rp"]
SPECIAL = [0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan]
EXACT = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "div": (2, lambda a, b: a / b),
    "fma": (3, lambda a, b, c: a * b + c),
    "sqrt": (1, square_root),
    "rcp": (1, lambda a: 1 / a),
}


def usable(name, tensors):
    """Without what has no finite exact result; the special values have their own test."""
    keep = torch.ones_like(tensors[0], dtype=torch.bool)
    if name in ("div", "rcp"):
        keep = tensors[-1] != 0
    if name == "sqrt":
        keep = tensors[0] >= 0
    return [t[keep] for t in tensors]


def run_on(code, kind, *tensors):
    """In blocks of 512 threads."""
    chunks = zip(*(t.split(512) for t in tensors), strict=True)
    return torch.cat([run(code, kind, *((kind, t) for t in chunk)) for chunk in chunks])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", EXACT)
def test_rounding(name, kind, mode):
    count, exact = EXACT[name]
    inputs = usable(name, operands(kind, count, seed=1))
    got = run_on(f"{name}.{mode}.{kind} d, {', '.join('abc'[:count])};", kind, *inputs)
    expect(got, lambda *v: rounded(exact(*map(Fraction, v)), kind, mode), *inputs)


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_default_is_round_to_nearest(name, kind):
    count, exact = EXACT[name]
    inputs = operands(kind, count, seed=2)
    got = run_on(f"{name}.{kind} d, a, b;", kind, *inputs)
    expect(got, lambda *v: rounded(exact(*map(Fraction, v)), kind), *inputs)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_ftz_flushes_operands_and_results(name):
    count, exact = EXACT[name]
    inputs = operands("f32", count, seed=3, spread=64)

    def flush(x):
        return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x

    got = run_on(f"{name}.rn.ftz.f32 d, {', '.join('abc'[:count])};", "f32", *inputs)
    subnormal = sum(int(((t != 0) & (t.abs() < 2.0**-126)).sum()) for t in inputs)
    assert subnormal > 50

    def reference(*values):
        out = exact(*(Fraction(flush(x)) for x in values))
        return flush(out) if abs(out) < 2.0**-126 else rounded(out, "f32")  # tiny before rounding

    expect(got, reference, *inputs)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_sat_clamps_to_the_unit_interval(name):
    count, exact = EXACT[name]
    inputs = operands("f32", count, seed=4, spread=1)
    got = run_on(f"{name}.rn.sat.f32 d, {', '.join('abc'[:count])};", "f32", *inputs)
    expect(got, lambda *v: rounded(min(max(exact(*map(Fraction, v)), 0), 1), "f32"), *inputs)
    nan = torch.full((32,), math.nan)
    got = run_on(f"{name}.rn.sat.f32 d, {', '.join('abc'[:count])};", "f32", *[nan] * count)
    assert got.tolist() == [0.0] * 32


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_special_values(kind):
    """Infinities, NaNs and the signs of zeros, by IEEE 754."""
    pairs = torch.tensor(list(itertools.product(SPECIAL, SPECIAL)), dtype=DTYPES[kind])
    a, b = pairs.T.contiguous()
    c = a.roll(3)
    for name, want in {
        "add.rn": a + b,
        "sub.rn": a - b,
        "mul.rn": a * b,
        "div.rn": a / b,
        "rcp.rn": 1 / a,
        "sqrt.rn": a.sqrt(),
    }.items():
        unary = name[:4] in ("rcp.", "sqrt")
        got = run_on(f"{name}.{kind} d, {'a' if unary else 'a, b'};", kind, a, b)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=name)
        same_sign = torch.signbit(got) == torch.signbit(want)
        assert bool((same_sign | want.isnan()).all()), name
    got = run_on(f"fma.rn.{kind} d, a, b, c;", kind, a, b, c)
    torch.testing.assert_close(got, a * b + c, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_min_and_max(kind):
    """A NaN loses against a number, and -0 is below +0."""
    values = [*SPECIAL, 1.0 + 2.0 ** (1 - FORMATS[kind][0]), -1e-30]
    pairs = torch.tensor(list(itertools.product(values, values)), dtype=DTYPES[kind])
    a, b = pairs.T.contiguous()

    def pick(first, second, sign):
        if math.isnan(first) or math.isnan(second):
            return second if math.isnan(first) else first
        key = [(sign * x, sign * math.copysign(1, x)) for x in (first, second)]
        return first if key[0] >= key[1] else second

    for name, sign in (("max", 1), ("min", -1)):
        got = run_on(f"{name}.{kind} d, a, b;", kind, a, b)
        expect(got, lambda x, y, s=sign: pick(x, y, s), a, b, bitwise=True)
        if kind == "f32":
            got = run_on(f"{name}.NaN.f32 d, a, b;", kind, a, b)
            want = torch.maximum(a, b) if sign > 0 else torch.minimum(a, b)
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_min_ftz():
    a, b = torch.tensor([1e-40, -1e-40, 1e-40, 2.0]), torch.tensor([1.0, 1.0, -1.0, 1e-40])
    got = run("min.ftz.f32 d, a, b;", "f32", ("f32", a), ("f32", b))
    assert got.tolist() == [0.0, 0.0, -1.0, 0.0]
    got = run("min.f32 d, a, b;", "f32", ("f32", a), ("f32", b))
    assert torch.equal(got, torch.minimum(a, b))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_abs_neg_copysign_testp(kind):
    a = torch.tensor([*SPECIAL[:-1], 1e-42, -1e-42], dtype=DTYPES[kind])
    b = a.roll(1)
    expect(run(f"abs.{kind} d, a;", kind, (kind, a)), abs, a, bitwise=True)
    expect(run(f"neg.{kind} d, a;", kind, (kind, a)), lambda x: -x, a, bitwise=True)
    got = run(f"copysign.{kind} d, a, b;", kind, (kind, a), (kind, b))
    expect(got, lambda x, y: math.copysign(y, x), a, b, bitwise=True)
    tests = {
        "finite": math.isfinite,
        "infinite": math.isinf,
        "number": lambda x: not math.isnan(x),
        "notanumber": math.isnan,
    }
    a = torch.cat([a, torch.tensor([math.nan], dtype=a.dtype)])
    for name, reference in tests.items():
        got = run(f"testp.{name}.{kind} d, a;", "pred", (kind, a))
        assert got == [int(reference(x)) for x in a.tolist()], name


def test_float_immediates():
    """0f and 0d give bits, a decimal literal is a double rounded to the instruction's type."""
    a = torch.tensor([1.0, -2.0, 0.1])
    got = run("add.f32 d, a, 0f3FC00000;", "f32", ("f32", a))
    assert torch.equal(got, a + 1.5)
    got = run("fma.rn.f32 d, a, 0fBF800000, 0f3F800000;", "f32", ("f32", a))
    assert torch.equal(got, 1 - a)
    got = run("mul.f64 d, a, 0d3FF8000000000000;", "f64", ("f64", a.double()))
    assert torch.equal(got, a.double() * 1.5)
    got = run("mov.f32 f0, 0.1; add.f32 d, a, f0;", "f32", ("f32", a))
    assert torch.equal(got, a + torch.tensor(0.1))
