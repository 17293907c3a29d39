"""Integer instructions against Python's unbounded integers."""

from __future__ import annotations

import operator

import pytest

from cuda_on_cpu.ptx_snippets import random_bits, run, signed, unsigned

TYPES = ["u16", "s16", "u32", "s32", "u64", "s64"]


def operands(kind, count=2):
    """Lists of the type's values, the corners of each paired in different orders."""
    bits = int(kind[1:])
    lists = []
    for i in range(count):
        values = random_bits(bits, 64, seed=i + 1)
        values = values[i * 3 :] + values[: i * 3]
        lists.append([signed(v, bits) if kind[0] == "s" else v for v in values])
    return lists


def fit(kind, value):
    bits = int(kind[1:])
    return signed(value, bits) if kind[0] == "s" else unsigned(value, bits)


def truncated_div(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def truncated_rem(a, b):
    return a - b * truncated_div(a, b)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("add", operator.add),
        ("sub", operator.sub),
        ("mul.lo", operator.mul),
        ("min", min),
        ("max", max),
        ("div", truncated_div),
        ("rem", truncated_rem),
    ],
)
def test_binary(kind, name, reference):
    a, b = operands(kind)
    if name in ("div", "rem"):  # division by zero has no specified result, nor has MIN / -1
        b = [v if v not in (0, -1) else 3 for v in b]
    got = run(f"{name}.{kind} d, a, b;", kind, (kind, a), (kind, b))
    assert got == [fit(kind, reference(x, y)) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("kind", TYPES)
def test_mul_hi(kind):
    a, b = operands(kind)
    got = run(f"mul.hi.{kind} d, a, b;", kind, (kind, a), (kind, b))
    assert got == [fit(kind, x * y >> int(kind[1:])) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
@pytest.mark.parametrize("immediate", [False, True])
def test_mul_wide_and_mad_wide(kind, immediate):
    a, b = operands(kind)
    if immediate:
        b = [-7 if kind[0] == "s" else 7] * len(b)
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    c = operands(wide)[1]
    op = str(b[0]) if immediate else "b"
    inputs = [(kind, a), (kind, b)]
    assert run(f"mul.wide.{kind} d, a, {op};", wide, *inputs) == [
        x * y for x, y in zip(a, b, strict=True)
    ]
    assert run(f"mad.wide.{kind} d, a, {op}, c;", wide, *inputs, (wide, c)) == [
        fit(wide, x * y + z) for x, y, z in zip(a, b, c, strict=True)
    ]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("half", ["lo", "hi"])
def test_mad(kind, half):
    a, b, c = operands(kind, 3)
    got = run(f"mad.{half}.{kind} d, a, b, c;", kind, (kind, a), (kind, b), (kind, c))
    shift = int(kind[1:]) if half == "hi" else 0
    assert got == [fit(kind, (x * y >> shift) + z) for x, y, z in zip(a, b, c, strict=True)]


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_abs_and_neg(kind):
    (a,) = operands(kind, 1)
    assert run(f"abs.{kind} d, a;", kind, (kind, a)) == [fit(kind, abs(x)) for x in a]
    assert run(f"neg.{kind} d, a;", kind, (kind, a)) == [fit(kind, -x) for x in a]


@pytest.mark.parametrize("kind", TYPES)
def test_sad(kind):
    a, b, c = operands(kind, 3)
    got = run(f"sad.{kind} d, a, b, c;", kind, (kind, a), (kind, b), (kind, c))
    assert got == [fit(kind, z + abs(x - y)) for x, y, z in zip(a, b, c, strict=True)]


def test_saturating_add_and_sub():
    a, b = operands("s32")
    top = 2**31 - 1
    for op, reference in (("add", operator.add), ("sub", operator.sub)):
        got = run(f"{op}.sat.s32 d, a, b;", "s32", ("s32", a), ("s32", b))
        want = [max(-top - 1, min(top, reference(x, y))) for x, y in zip(a, b, strict=True)]
        assert got == want


SHIFTS = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 1 << 31, (1 << 32) - 1]


@pytest.mark.parametrize("name", ["shl.b", "shr.u", "shr.s"])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_clamp_at_the_width(name, bits):
    a = [v for v in random_bits(bits, 12, seed=4) for _ in SHIFTS]
    b = SHIFTS * 12
    got = run(f"{name}{bits} d, a, b;", f"u{bits}", (f"u{bits}", a), ("u32", b))
    for x, n, result in zip(a, b, got, strict=True):
        n = min(n, bits)
        want = {"shl.b": x << n, "shr.u": x >> n, "shr.s": signed(x, bits) >> n}[name]
        assert result == unsigned(want, bits), (hex(x), n)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    kind = f"b{bits}"
    a, b = operands(f"u{bits}")
    inputs = [(kind, a), (kind, b)]
    for name in ("and", "or", "xor"):
        reference = getattr(operator, f"{name}_" if name != "xor" else name)
        want = [reference(x, y) for x, y in zip(a, b, strict=True)]
        assert run(f"{name}.{kind} d, a, b;", kind, *inputs) == want
    assert run(f"not.{kind} d, a;", kind, inputs[0]) == [unsigned(~x, bits) for x in a]
    assert run(f"cnot.{kind} d, a;", kind, inputs[0]) == [int(x == 0) for x in a]


@pytest.mark.parametrize("side", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shift(side, mode):
    counts = [0, 1, 4, 8, 16, 24, 31, 32, 33, 40, 63, 64, 255, 1 << 31]
    n = len(counts)
    a, b = random_bits(32, 64, 5)[-n:], random_bits(32, 64, 6)[-n:]
    got = run(f"shf.{side}.{mode}.b32 d, a, b, c;", "u32", ("u32", a), ("u32", b), ("u32", counts))
    for low, high, count, result in zip(a, b, counts, got, strict=True):
        count = count % 32 if mode == "wrap" else min(count, 32)
        both = high << 32 | low
        want = (both << count) >> 32 if side == "l" else both >> count
        assert result == unsigned(want, 32), count


@pytest.mark.parametrize("lut", [0x00, 0x80, 0x96, 0xE8, 0xCA, 0x1B, 0xF0, 0xCC, 0xAA, 0xFE, 0xFF])
def test_lop3(lut):
    a, b, c = (random_bits(32, 32, s, extremes=False) for s in (7, 8, 9))
    got = run(f"lop3.b32 d, a, b, c, {lut:#x};", "u32", ("u32", a), ("u32", b), ("u32", c))
    want = [
        sum(
            (lut >> (4 * (x >> i & 1) + 2 * (y >> i & 1) + (z >> i & 1)) & 1) << i
            for i in range(32)
        )
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert got == want


def permute(a, b, selector):
    data = (b << 32 | a).to_bytes(8, "little")
    out = []
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = data[nibble & 7]
        out.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def test_prmt():
    a, b, c = (random_bits(32, 64, s, extremes=False) for s in (10, 11, 12))
    got = run("prmt.b32 d, a, b, c;", "u32", ("u32", a), ("u32", b), ("u32", c))
    assert got == [permute(x, y, z) for x, y, z in zip(a, b, c, strict=True)]
    for selector in (0x5410, 0x7632, 0x0123, 0x9810, 0xBA98, 0xFEDC):
        got = run(f"prmt.b32 d, a, b, {selector};", "u32", ("u32", a), ("u32", b))
        assert got == [permute(x, y, selector) for x, y in zip(a, b, strict=True)]


def test_prmt_modes():
    a, b = random_bits(32, 32, 10, extremes=False), random_bits(32, 32, 11, extremes=False)
    modes = {
        "f4e": lambda s: [s, s + 1, s + 2, s + 3],
        "b4e": lambda s: [s, (s - 1) % 8, (s - 2) % 8, (s - 3) % 8],
        "rc8": lambda s: [s] * 4,
        "ecl": lambda s: [max(i, s) for i in range(4)],
        "ecr": lambda s: [min(i, s) for i in range(4)],
        "rc16": lambda s: [0, 1, 0, 1] if s % 2 == 0 else [2, 3, 2, 3],
    }
    for mode, pick in modes.items():
        c = [i % 4 for i in range(32)]
        got = run(f"prmt.b32.{mode} d, a, b, c;", "u32", ("u32", a), ("u32", b), ("u32", c))
        for x, y, s, result in zip(a, b, c, got, strict=True):
            data = (y << 32 | x).to_bytes(8, "little")
            assert result == int.from_bytes(bytes(data[i % 8] for i in pick(s)), "little"), (
                mode,
                s,
            )


def test_mul_wide_u16_of_packed_halves():
    a, b = operands("u32")
    code = "mov.b32 {h0, h1}, a; mov.b32 {h2, h3}, b; mul.wide.u16 d, h1, h2;"
    got = run(code, "u32", ("u32", a), ("u32", b))
    assert got == [(x >> 16) * (y & 65535) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("signs", ["u32.u32", "s32.s32", "u32.s32", "s32.u32"])
def test_dp4a(signs):
    a, b, c = (random_bits(32, 32, s) for s in (13, 14, 15))
    out = "s32" if "s" in signs else "u32"
    got = run(f"dp4a.{signs} d, a, b, c;", out, ("u32", a), ("u32", b), ("u32", c))

    def lanes(word, kind):
        return [signed(v, 8) if kind == "s32" else v for v in word.to_bytes(4, "little")]

    first, second = signs.split(".")
    want = [
        fit(out, z + sum(map(operator.mul, lanes(x, first), lanes(y, second))))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert got == want
