"""Bit fields, bit counts and comparisons."""

from __future__ import annotations

import itertools
import math
import operator

import pytest
import torch

from cuda_on_cpu.ptx_snippets import random_bits, run, signed, unsigned

FIELDS = list(
    itertools.product(
        [0, 1, 7, 16, 31, 32, 33, 63, 64, 200, 255], [0, 1, 8, 16, 31, 32, 33, 64, 255]
    )
)


def field_reference(value, kind, pos, length):
    bits = int(kind[1:])
    result = 0
    top = min(pos + length - 1, bits - 1)
    sign = value >> top & 1 if kind[0] == "s" and length else 0
    for i in range(bits):
        bit = value >> (pos + i) & 1 if i < length and pos + i < bits else sign
        result |= bit << i
    return result


FIELD_KINDS = [("u32", 0), ("s32", 0), ("u32", ~0xFF), ("s32", ~0xFF), ("u64", 0), ("s64", 0)]


@pytest.mark.parametrize(("kind", "high"), FIELD_KINDS)
def test_bfe(kind, high):
    """Position and length are the low bytes of 32-bit operands, whatever stands above."""
    bits, high = int(kind[1:]), high & 0xFFFFFFFF
    for seed in range(3):
        a = random_bits(bits, len(FIELDS), seed=20 + seed, extremes=False)
        pos, length = zip(*FIELDS, strict=True)
        got = run(
            f"bfe.{kind} d, a, b, c;",
            f"u{bits}",
            (f"u{bits}", a),
            ("u32", [p | high for p in pos]),
            ("u32", [n | high for n in length]),
        )
        for x, p, n, result in zip(a, pos, length, got, strict=True):
            assert result == field_reference(x, kind, p, n), (hex(x), p, n)


@pytest.mark.parametrize("bits", [32, 64])
def test_bfi(bits):
    a = random_bits(bits, len(FIELDS), seed=30, extremes=False)
    b = random_bits(bits, len(FIELDS), seed=31, extremes=False)
    packed = [p | n << 8 for p, n in FIELDS]
    code = f"and.b32 t0, c, 255; shr.u32 t1, c, 8; bfi.b{bits} d, a, b, t0, t1;"
    got = run(code, f"u{bits}", (f"u{bits}", a), (f"u{bits}", b), ("u32", packed))
    for x, y, (pos, length), result in zip(a, b, FIELDS, got, strict=True):
        mask = unsigned(((1 << length) - 1) << pos, bits)
        assert result == (y & ~mask) | (unsigned(x << pos, bits) & mask), (pos, length)


@pytest.mark.parametrize("bits", [32, 64])
def test_counts(bits):
    a = random_bits(bits, 64, seed=33)
    value = (f"u{bits}", a)
    assert run(f"popc.b{bits} d, a;", "u32", value) == [x.bit_count() for x in a]
    assert run(f"clz.b{bits} d, a;", "u32", value) == [bits - x.bit_length() for x in a]
    want = [int(f"{x:0{bits}b}"[::-1], 2) for x in a]
    assert run(f"brev.b{bits} d, a;", f"u{bits}", value) == want


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfind(kind):
    """The highest bit that is not a copy of the sign; all ones when there is none."""
    bits = int(kind[1:])
    a = random_bits(bits, 64, seed=34)
    magnitude = [(x if kind[0] == "u" else unsigned(x ^ signed(x, bits) >> bits, bits)) for x in a]
    assert {0} < set(magnitude)
    value = (f"u{bits}", a)
    none = 2**32 - 1
    want = [m.bit_length() - 1 if m else none for m in magnitude]
    assert run(f"bfind.{kind} d, a;", "u32", value) == want
    want = [bits - m.bit_length() if m else none for m in magnitude]
    assert run(f"bfind.shiftamt.{kind} d, a;", "u32", value) == want


def test_bmsk_and_szext():
    """sm_70's bit masks and extensions, which the compiler emits for field arithmetic."""
    pos, length = zip(*FIELDS, strict=True)
    inputs = [("u32", pos), ("u32", length)]
    clamped = run("bmsk.clamp.b32 d, a, b;", "u32", *inputs)
    wrapped = run("bmsk.wrap.b32 d, a, b;", "u32", *inputs)
    for (p, n), c, w in zip(FIELDS, clamped, wrapped, strict=True):
        assert c == unsigned((1 << min(n, 32)) - 1 << min(p, 32), 32), (p, n)
        assert w == unsigned((1 << n % 32) - 1 << p % 32, 32), (p, n)


PAIRS = [(x, y) for x in random_bits(64, 12, seed=35) for y in random_bits(64, 12, seed=35)]
SIGNED = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
UNSIGNED = {**SIGNED, "lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("sign", "sub")
def test_setp(bits, sign):
    names = {"s": SIGNED, "u": UNSIGNED, "b": {"eq": "eq", "ne": "ne"}}[sign]
    cast = signed if sign == "s" else unsigned
    a, b = zip(*[(unsigned(x, bits), unsigned(y, bits)) for x, y in PAIRS], strict=True)
    for name, reference in names.items():
        code = f"setp.{name}.{sign}{bits} d, a, b;"
        got = run(code, "pred", (f"u{bits}", a), (f"u{bits}", b))
        compare = getattr(operator, reference)
        want = [int(compare(cast(x, bits), cast(y, bits))) for x, y in zip(a, b, strict=True)]
        assert got == want, code


@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
def test_setp_floats(kind):
    """A plain comparison is false on NaN, its unordered twin true."""
    dtype = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16}[kind]
    corners = [0.0, -0.0, 1.0, -1.5, 2.0, math.inf, -math.inf, math.nan]
    a, b = (
        torch.tensor(v, dtype=dtype) for v in zip(*itertools.product(corners, corners), strict=True)
    )
    nan = torch.isnan(a) | torch.isnan(b)
    for name in SIGNED:
        plain = getattr(operator, name)(a, b) & ~nan
        for code, want in ((name, plain), (f"{name}u", plain | nan)):
            got = run(f"setp.{code}.{kind} d, a, b;", "pred", (kind, a), (kind, b))
            assert got == want.int().tolist(), code
    for code, want in (("num", ~nan), ("nan", nan)):
        got = run(f"setp.{code}.{kind} d, a, b;", "pred", (kind, a), (kind, b))
        assert got == want.int().tolist(), code


def test_setp_flushes_denormals_only_with_ftz():
    tiny = torch.tensor([1e-40, -1e-40, 1e-30, 0.0])
    zero = torch.zeros(4)
    inputs = [("f32", tiny), ("f32", zero)]
    assert run("setp.gt.f32 d, a, b;", "pred", *inputs) == [1, 0, 1, 0]
    assert run("setp.gt.ftz.f32 d, a, b;", "pred", *inputs) == [0, 0, 1, 0]
    assert run("setp.eq.ftz.f32 d, a, b;", "pred", *inputs) == [1, 1, 0, 1]


@pytest.mark.parametrize("name", ["and", "or", "xor"])
@pytest.mark.parametrize("negate", ["", "!"])
def test_setp_combines_and_gives_the_complement(name, negate):
    """p = (a < b) op c and q = !(a < b) op c."""
    a, b = zip(*[(x % 2**32, y % 2**32) for x, y in PAIRS], strict=True)
    c = [i % 2 for i in range(len(a))]
    code = f"setp.ne.u32 p0, c, 0; setp.lt.{name}.s32 d|e, a, b, {negate}p0;"
    p, q = run(code, ("pred", "pred"), ("u32", a), ("u32", b), ("u32", c))
    combine = getattr(operator, f"{name}_" if name != "xor" else name)
    third = [bool(x) != bool(negate) for x in c]
    less = [signed(x, 32) < signed(y, 32) for x, y in zip(a, b, strict=True)]
    assert p == [int(combine(x, z)) for x, z in zip(less, third, strict=True)]
    assert q == [int(combine(not x, z)) for x, z in zip(less, third, strict=True)]


def test_set():
    """set writes all ones, or 1.0, where setp would write a predicate."""
    a, b = zip(*[(x % 2**32, y % 2**32) for x, y in PAIRS], strict=True)
    inputs = [("u32", a), ("u32", b)]
    less = [x < y for x, y in zip(a, b, strict=True)]
    assert run("set.lt.u32.u32 d, a, b;", "u32", *inputs) == [2**32 - 1 if x else 0 for x in less]
    assert run("set.lt.f32.u32 d, a, b;", "f32", *inputs).tolist() == [float(x) for x in less]


@pytest.mark.parametrize("kind", ["b16", "u32", "s64", "f32", "f64"])
def test_selp(kind):
    floats = kind[0] == "f"
    a, b = (
        [float(v % 1000) if floats else v % 2**15 for v in random_bits(32, 32, s)] for s in (1, 2)
    )
    c = [i % 3 for i in range(32)]
    code = f"setp.eq.u32 p0, c, 1; selp.{kind} d, a, b, p0;"
    got = list(run(code, kind, (kind, a), (kind, b), ("u32", c)))
    assert got == [x if z == 1 else y for x, y, z in zip(a, b, c, strict=True)]


def test_slct():
    """The first operand where the third is not negative; -0 is not, NaN picks the second."""
    a, b = list(range(8)), list(range(100, 108))
    c = [0, 1, -1, 2**31 - 1, -(2**31), 5, -5, 7]
    inputs = [("u32", a), ("u32", b)]
    want = [x if z >= 0 else y for x, y, z in zip(a, b, c, strict=True)]
    assert run("slct.u32.s32 d, a, b, c;", "u32", *inputs, ("s32", c)) == want
    c = torch.tensor([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, -1e-42])
    want = [0, 1, 2, 103, 104, 5, 106, 107]
    assert run("slct.u32.f32 d, a, b, c;", "u32", *inputs, ("f32", c)) == want
    assert run("slct.ftz.u32.f32 d, a, b, c;", "u32", *inputs, ("f32", c))[7] == 7


def test_logic_on_predicates():
    a, b = random_bits(32, 32, seed=36), random_bits(32, 32, seed=37)
    setp = "and.b32 t0, a, 1; setp.ne.u32 p0, t0, 0; and.b32 t0, b, 1; setp.ne.u32 p1, t0, 0;"
    cases = {
        "and.pred d, p0, p1;": lambda x, y: x & y,
        "or.pred d, p0, p1;": lambda x, y: x | y,
        "xor.pred d, p0, p1;": lambda x, y: x ^ y,
        "not.pred d, p0;": lambda x, y: 1 - x,
        "mov.pred d, p1;": lambda x, y: y,
    }
    for code, reference in cases.items():
        want = [reference(x & 1, y & 1) for x, y in zip(a, b, strict=True)]
        assert run(setp + code, "pred", ("u32", a), ("u32", b)) == want, code
