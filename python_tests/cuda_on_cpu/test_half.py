"""f16 and bf16, scalar and packed, against exactly computed, once rounded results."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from cuda_on_cpu.float_reference import DTYPES, expect, operands, rounded
from cuda_on_cpu.ptx_snippets import run

EXACT = {
    "add": (2, lambda a, b: a + b),
    "add.rn": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "fma.rn": (3, lambda a, b, c: a * b + c),
}
OPS = [(name, kind) for name in EXACT for kind in ("f16", "f16x2")]
OPS += [("fma.rn", "bf16"), ("fma.rn", "bf16x2")]  # the other bf16 arithmetic begins with sm_90


def fused(a, b, c):
    return Fraction(a) * Fraction(b) + Fraction(c)


def run_on(code, kind, *tensors):
    """In blocks of 512 threads; packed kinds take the tensors' neighbours as pairs."""
    packed = kind.endswith("x2")
    shaped = [t[: len(t) // 2 * 2].view(-1, 2) if packed else t for t in tensors]
    chunks = zip(*(t.split(512) for t in shaped), strict=True)
    return torch.cat([run(code, kind, *((kind, t) for t in chunk)) for chunk in chunks]).flatten()


@pytest.mark.parametrize(("name", "kind"), OPS)
def test_arithmetic(name, kind):
    base = kind.removesuffix("x2")
    count, exact = EXACT[name]
    inputs = operands(base, count, seed=5, spread=6)
    inputs = [t[: len(t) // 2 * 2] for t in inputs]
    got = run_on(f"{name}.{kind} d, {', '.join('abc'[:count])};", kind, *inputs)
    expect(got, lambda *v: rounded(exact(*map(Fraction, v)), base), *inputs)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_fma_rounds_once(kind):
    """A tie of the product that a term below f32's last bit decides."""
    factors = {"f16": (33 / 32, 65 / 64), "bf16": (17 / 16, 17 / 16)}[kind]
    small = {"f16": 2.0**-24, "bf16": 2.0**-40}[kind]
    a, b, c = (
        torch.tensor(v, dtype=DTYPES[kind])
        for v in zip(*[(*factors, small), (*factors, -small), (*factors, 0.0)], strict=True)
    )
    got = run_on(f"fma.rn.{kind} d, a, b, c;", kind, a, b, c)
    expect(got, lambda *v: rounded(fused(*v), kind), a, b, c)
    assert len(set(got[:2].tolist())) == 2


@pytest.mark.parametrize("kind", ["f16", "f16x2", "bf16", "bf16x2"])
def test_fma_relu(kind):
    base = kind.removesuffix("x2")
    inputs = [t[: len(t) // 2 * 2] for t in operands(base, 3, seed=6, spread=3)]
    got = run_on(f"fma.rn.relu.{kind} d, a, b, c;", kind, *inputs)
    expect(got, lambda a, b, c: max(0.0, rounded(fused(a, b, c), base)), *inputs)


def test_bf16_sum_difference_and_product_through_fma():
    """What the compiler makes of +, - and * on an sm_80 device."""
    a, b = operands("bf16", 2, seed=7)
    inputs = a, b
    cases = {
        "mov.b16 h0, 0x3f80U; fma.rn.bf16 d, a, h0, b;": lambda x, y: x + y,
        "mov.b16 h0, 0xbf80U; fma.rn.bf16 d, b, h0, a;": lambda x, y: x - y,
        "mov.b16 h0, 0x8000U; fma.rn.bf16 d, a, b, h0;": lambda x, y: x * y,
    }
    for code, exact in cases.items():
        got = run_on(code, "bf16", *inputs)
        expect(got, lambda x, y, e=exact: rounded(e(Fraction(x), Fraction(y)), "bf16"), *inputs)


@pytest.mark.parametrize("kind", ["f16", "f16x2", "bf16", "bf16x2"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_min_and_max(name, kind):
    base = kind.removesuffix("x2")
    values = [0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 2.0**-14 / 4]
    pairs = torch.tensor(list(itertools.product(values, values)), dtype=DTYPES[base])
    a, b = pairs.T.contiguous()
    sign = 1 if name == "max" else -1

    def pick(x, y):
        if math.isnan(x) or math.isnan(y):
            return y if math.isnan(x) else x
        return max(x, y, key=lambda v: (sign * v, sign * math.copysign(1, v)))

    got = run_on(f"{name}.{kind} d, a, b;", kind, a, b)
    expect(got, pick, a, b, bitwise=True)
    got = run_on(f"{name}.NaN.{kind} d, a, b;", kind, a, b)
    expect(got, lambda x, y: math.nan if x != x or y != y else pick(x, y), a, b, bitwise=True)


@pytest.mark.parametrize("kind", ["f16", "f16x2", "bf16", "bf16x2"])
def test_neg_and_abs(kind):
    base = kind.removesuffix("x2")
    a = operands(base, 1, seed=8)[0]
    a = a[: len(a) // 2 * 2]
    expect(run_on(f"neg.{kind} d, a;", kind, a), lambda x: -x, a, bitwise=True)
    expect(run_on(f"abs.{kind} d, a;", kind, a), abs, a, bitwise=True)


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "ltu", "neu"])
def test_setp_f16x2_sets_a_predicate_for_each_half(name):
    values = [0.0, -0.0, 1.0, -1.5, math.inf, math.nan, 2.0, 3.0]
    pairs = torch.tensor(list(itertools.product(values, values)), dtype=torch.float16)
    a, b = (t.reshape(-1, 2) for t in pairs.T.contiguous())
    low, high = run(f"setp.{name}.f16x2 d|e, a, b;", ("pred", "pred"), ("f16x2", a), ("f16x2", b))
    nan = a.isnan() | b.isnan()
    want = getattr(torch, name[:2])(a, b) & ~nan
    if name.endswith("u"):
        want |= nan
    assert low == want[:, 0].int().tolist()
    assert high == want[:, 1].int().tolist()


def test_ftz_flushes_f16_denormals():
    a = torch.tensor([2.0**-24, -(2.0**-15), 2.0**-14, 1.0], dtype=torch.float16)
    got = run_on("add.ftz.f16 d, a, b;", "f16", a, torch.zeros_like(a))
    assert got.tolist() == [0.0, 0.0, 2.0**-14, 1.0]
    got = run_on("add.f16 d, a, b;", "f16", a, torch.zeros_like(a))
    assert torch.equal(got, a)


def test_sat_clamps_f16():
    a = torch.tensor([-1.0, 0.5, 2.0, math.nan], dtype=torch.float16)
    got = run_on("add.sat.f16 d, a, b;", "f16", a, torch.zeros_like(a))
    assert got.tolist() == [0.0, 0.5, 1.0, 0.0]


TINY = [0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0x0000]  # of f16, two normal


def flushed(bits):
    return bits & 0x8000 if bits & 0x7C00 == 0 else bits


@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max", "neg", "abs"])
@pytest.mark.parametrize("packed", ["", "x2"])
def test_ftz_flushes_subnormal_f16_operands_and_results(name, packed):
    """With operands flushed beforehand, ftz may only flush the result."""
    rows = list(itertools.product(TINY, TINY))
    a, b = ([pair[i] for pair in rows] for i in (0, 1))
    kind = "u32" if packed else "u16"
    widen = (lambda x: [v | 0x3C00 << 16 for v in x]) if packed else list
    code = f"{name}{{}}.f16{packed} d, a" + (";" if name in ("neg", "abs") else ", b;")
    got = run(code.format(".ftz"), kind, (kind, widen(a)), (kind, widen(b)))
    plain = [widen([flushed(v) for v in x]) for x in (a, b)]
    want = run(code.format(""), kind, *((kind, x) for x in plain))
    low = [flushed(v & 0xFFFF) for v in want]
    assert [v & 0xFFFF for v in got] == low
    assert got != run(code.format(""), kind, (kind, widen(a)), (kind, widen(b)))


def test_setp_ftz_f16_compares_subnormals_as_zeros():
    a, b = [0x0001, 0x8001, 0x0400, 0x03FF], [0x0000, 0x0000, 0x0000, 0x8001]
    compare = "setp.{}eq{}.f16 p0, a, b; selp.u32 d, 1, 0, p0;"
    assert run(compare.format("", ".ftz"), "u32", ("u16", a), ("u16", b)) == [1, 1, 0, 1]
    assert run(compare.format("", ""), "u32", ("u16", a), ("u16", b)) == [0, 0, 0, 0]
