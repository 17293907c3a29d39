"""Rarer instructions, from the manual's pseudo code."""

from __future__ import annotations

import math

import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import Misaligned, OutOfBounds, Unsupported
from cuda_on_cpu.ptx_snippets import at, launch, module, random_bits, run, signed, unsigned


def nth(mask, base, offset):
    places = [i for i in range(32) if mask >> i & 1]
    if offset == 0:
        return base if base in places else 2**32 - 1
    if offset > 0:
        found = [i for i in places if i >= base][offset - 1 : offset]
    else:
        found = [i for i in reversed(places) if i <= base][-offset - 1 : -offset]
    return found[0] if found else 2**32 - 1


def test_fns():
    masks = random_bits(32, 64, seed=1)
    bases = [x % 32 for x in random_bits(32, 64, seed=2)]
    offsets = [x % 13 - 6 for x in random_bits(32, 64, seed=3)]
    got = run("fns.b32 d, a, b, c;", "u32", ("b32", masks), ("u32", bases), ("s32", offsets))
    assert got == [nth(*x) for x in zip(masks, bases, offsets, strict=True)]
    assert len(set(got)) > 10


@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_szext(kind, mode):
    values = random_bits(32, 64, seed=4)
    counts = [i % 40 for i in range(64)]

    def want(a, n):
        if n >= 32 and mode == "clamp":
            return a
        n %= 32
        low = a & (1 << n) - 1
        return unsigned(signed(low, n), 32) if kind == "s32" and n else low

    got = run(f"szext.{mode}.{kind} d, a, b;", "u32", ("b32", values), ("u32", counts))
    assert got == [want(a, n) for a, n in zip(values, counts, strict=True)]


@pytest.mark.parametrize("a_kind", ["u32", "s32"])
@pytest.mark.parametrize("b_kind", ["u32", "s32"])
@pytest.mark.parametrize("half", ["lo", "hi"])
def test_dp2a(half, a_kind, b_kind):
    a, b, c = (random_bits(32, 64, seed=s) for s in (5, 6, 7))

    def part(x, i, bits, kind):
        x = x >> bits * i & (1 << bits) - 1
        return signed(x, bits) if kind == "s32" else x

    def want(x, y, z):
        first = 2 * (half == "hi")
        terms = (part(x, i, 16, a_kind) * part(y, first + i, 8, b_kind) for i in range(2))
        return unsigned(z + sum(terms), 32)

    code = f"dp2a.{half}.{a_kind}.{b_kind} d, a, b, c;"
    got = run(code, "u32", ("b32", a), ("b32", b), ("b32", c))
    assert got == [want(*x) for x in zip(a, b, c, strict=True)]


@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize("half", ["lo", "hi"])
def test_mul24_and_mad24(half, kind):
    a, b, c = (random_bits(32, 64, seed=s) for s in (8, 9, 10))

    def product(x, y):
        x, y = (signed(v, 24) if kind == "s32" else v & 0xFFFFFF for v in (x, y))
        return x * y >> 16 if half == "hi" else x * y

    got = run(f"mul24.{half}.{kind} d, a, b;", "u32", ("b32", a), ("b32", b))
    assert got == [unsigned(product(x, y), 32) for x, y in zip(a, b, strict=True)]
    inputs = ("b32", a), ("b32", b), ("b32", c)
    got = run(f"mad24.{half}.{kind} d, a, b, c;", "u32", *inputs)
    assert got == [unsigned(product(x, y) + z, 32) for x, y, z in zip(a, b, c, strict=True)]
    if (half, kind) == ("hi", "s32"):
        got = run("mad24.hi.sat.s32 d, a, b, c;", "s32", *inputs)
        sums = [product(x, y) + signed(z, 32) for x, y, z in zip(a, b, c, strict=True)]
        assert got == [min(max(s, -(2**31)), 2**31 - 1) for s in sums]


@pytest.mark.parametrize("operation", ["or", "and"])
@pytest.mark.parametrize("negated", ["", "!"])
def test_lop3_with_a_predicate(operation, negated):
    a, b, c = ([0, 0, 1, 2] * 8, [0, 4, 1, 2] * 8, [0] * 32)
    code = f"setp.gt.u32 p0, tid, 15;\nlop3.{operation}.b32 d|p1, a, b, c, 0x3c, {negated}p0;\n"
    code += "selp.u32 e, 1, 0, p1;"
    d, e = run(code, ("u32", "u32"), ("b32", a), ("b32", b), ("b32", c))
    combine = any if operation == "or" else all
    for lane in range(32):
        assert d[lane] == a[lane] ^ b[lane]
        assert e[lane] == combine((d[lane] != 0, (lane > 15) != (negated == "!")))


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "f16x2", "bf16x2"])
def test_magnitudes(kind, name, nan):
    edges = [0.0, -0.0, 1.5, -1.5, 2.0, -3.0, math.inf, math.nan]
    x = torch.tensor([u for u in edges for _ in edges])
    y = torch.tensor([v for _ in edges for v in edges])

    def want(u, v):
        if math.isnan(u) or math.isnan(v):
            if nan or (math.isnan(u) and math.isnan(v)):
                return math.nan
            size = abs(v) if math.isnan(u) else abs(u)
        else:
            size = {"min": min, "max": max}[name](abs(u), abs(v))
        return math.copysign(size, math.copysign(1, u) * math.copysign(1, v))

    if kind.endswith("x2"):
        x, y = x.reshape(-1, 2), y.reshape(-1, 2)
    dtype = {"f32": torch.float32, "f16": torch.float16}.get(
        kind.removesuffix("x2"), torch.bfloat16
    )
    code, pair = f"{name}{nan}.xorsign.abs.{kind} d, a, b;", ((kind, v.to(dtype)) for v in (x, y))
    got = run(code, kind, *pair, target="sm_90")
    for g, u, v in zip(*(t.double().flatten().tolist() for t in (got, x, y)), strict=True):
        w = want(u, v)
        # The sign of a NaN that torch has converted is not the point.
        signed_alike = math.isnan(u + v) or math.copysign(1, g) == math.copysign(1, w)
        assert (math.isnan(g) and math.isnan(w)) or (abs(g) == abs(w) and signed_alike)


VECTORS = [
    ("f32", 2, torch.float32), ("f32", 4, torch.float32), ("f16", 2, torch.float16),
    ("f16", 8, torch.float16), ("bf16", 4, torch.bfloat16), ("f16x2", 4, torch.float16),
    ("bf16x2", 2, torch.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "count", "dtype"), VECTORS)
def test_vectors_of_reductions(kind, count, dtype):
    """64 threads add 1, 2, .. to the elements of one vector."""
    per = 2 if kind.endswith("x2") else 1
    values = torch.arange(1, count * per + 1).to(dtype)
    size = dtype.itemsize * per
    register = f"b{8 * size}" if kind != "f32" else "f32"
    names = ", ".join(f"v{i}" for i in range(count))
    loads = "".join(f"ld.global.b{8 * size} v{i}, [g0+{i * size}];" for i in range(count))
    half = "" if kind == "f32" else ".noftz"
    out = torch.zeros(count * per + 4, dtype=dtype)
    body = f".reg .{register} v<{count}>; {loads}\n"
    red = f"red.global.add{half}.v{count}.{kind} [g1], {{{names}}};"
    launch(body + red, values, out, block=64, target="sm_90")
    assert torch.equal(out[: count * per].double(), 64 * values.double())
    assert not out[count * per :].any()
    with pytest.raises(Misaligned):
        launch(body + red.replace("[g1]", f"[g1+{size}]"), values, out, target="sm_90")


def test_a_vector_of_atomics_returns_the_old_values():
    body = ".reg .f32 o<2>;\n" + at("g1", 8)
    body += "atom.global.add.v2.f32 {o0, o1}, [g0], {0f3F800000, 0f40000000};\n"
    body += "st.global.v2.f32 [x0], {o0, o1};"
    total, old = torch.zeros(2), torch.zeros(32, 2)
    launch(body, total, old, target="sm_90", on_gpu={1: False})  # the order is free
    assert total.tolist() == [32.0, 64.0]
    assert sorted(old[:, 0].tolist()) == list(range(32))
    assert torch.equal(old[:, 1], 2 * old[:, 0])
    with pytest.raises(OutOfBounds):
        launch(body.replace("[g0]", "[g0+8]"), total, old, target="sm_90")


@pytest.mark.parametrize(
    "code",
    [
        "min.f32 f0, f1, f2, f3;",
        "max.xorsign.f32 f0, f1, f2;",
        "add.xorsign.abs.f32 f0, f1, f2;",
        "add.abs.f32 f0, f1, f2;",
        "min.xorsign.abs.f64 x0, x1, x2;",
        "add.f32 f0, f1;",
        "mul24.lo.u16 h0, h1, h2;",
        "mad24.lo.sat.s32 t0, t1, t2, t3;",
        "red.global.min.noftz.v2.f16 [g0], {h0, h1};",
        "red.global.add.v4.f16x2 [g0], {t0, t1, t2};",
        "red.shared.add.v2.f32 [t0], {f0, f1};",
        "red.global.add.v8.f32 [g0], {f0, f1, f2, f3, f0, f1, f2, f3};",
        "multimem.red.relaxed.gpu.global.add.f32 [g0], f0;",
        "st.bulk.weak.shared::cta [t0], 64, 0;",
        "szext.u32 t0, t1, t2;",
        "dp2a.s32.s32 t0, t1, t2, t3;",
        "atom.global.exch.b128 x0, [g0], x1;",
    ],
)
def test_refused(code):
    with pytest.raises(Unsupported):
        emulate(module(code, target="sm_90"))
