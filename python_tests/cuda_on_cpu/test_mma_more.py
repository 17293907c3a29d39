"""mma.sync of 8-bit floats, of nibbles and of f64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import Unsupported
from cuda_on_cpu.ptx_snippets import at, launch, module

LANES = range(32)
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def instruction(name, counts, kinds=("b32",) * 4):
    """Loads a, b, c from g0, g1, g2 and stores d to g3, each lane its own registers."""
    body = "".join(
        f".reg .{kind} {letter}<{count}>;\n"
        for letter, count, kind in zip("dabc", counts, kinds, strict=True)
    )
    size = 8 if kinds[0] == "f64" else 4
    width = kinds[0]
    for letter, pointer, count in zip("abc", range(3), counts[1:], strict=True):
        body += at(f"g{pointer}", size * count)
        body += "".join(f"ld.global.{width} {letter}{i}, [x0+{size * i}];" for i in range(count))
    vectors = [
        "{" + ", ".join(f"{letter}{i}" for i in range(count)) + "}"
        for letter, count in zip("dabc", counts, strict=True)
    ]
    body += f"{name} {', '.join(vectors)};\n" + at("g3", size * counts[0])
    return body + "".join(f"st.global.{width} [x0+{size * i}], d{i};" for i in range(counts[0]))


def a_place(lane, i, per):
    register, element = divmod(i, per)
    row = lane // 4 + 8 * (register % 2)
    return row, lane % 4 * per + element + 4 * per * (register // 2)


def b_place(lane, i, per):
    register, element = divmod(i, per)
    return lane % 4 * per + element + 4 * per * register, lane // 4


def c_place(lane, i):
    return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2


def gathered(matrix, place, count, *more):
    rows, columns = np.array([[place(lane, i, *more) for i in range(count)] for lane in LANES]).T
    return np.ascontiguousarray(matrix[rows.T, columns.T])


def scattered(values):
    out = np.zeros((16, 8), values.dtype)
    for lane in LANES:
        for i in range(4):
            out[c_place(lane, i)] = values[lane, i]
    return out


@pytest.mark.parametrize("accumulator", ["f32", "f16"])
@pytest.mark.parametrize("k", [16, 32])
@pytest.mark.parametrize("b_kind", FLOAT8)
@pytest.mark.parametrize("a_kind", FLOAT8)
def test_float8(a_kind, b_kind, k, accumulator):
    g = torch.Generator().manual_seed(k)
    a = torch.randn(16, k, generator=g).to(FLOAT8[a_kind])
    b = torch.randn(k, 8, generator=g).to(FLOAT8[b_kind])
    dtype = {"f32": np.float32, "f16": np.float16}[accumulator]
    c = torch.randn(16, 8, generator=g).numpy().astype(dtype)
    name = f"mma.sync.aligned.m16n8k{k}.row.col.{accumulator}.{a_kind}.{b_kind}.{accumulator}"
    registers = 4 if accumulator == "f32" else 2
    parts = [
        gathered(a.view(torch.uint8).numpy(), a_place, k // 2, 4),
        gathered(b.view(torch.uint8).numpy(), b_place, k // 4, 4),
        gathered(c, c_place, 4),
    ]
    d = np.zeros_like(parts[2])
    body = instruction(name, (registers, k // 8, k // 16, registers))
    on_gpu = {3: 2e-2}  # of sums of 8-bit floats hardware keeps fewer bits
    launch(body, *map(torch.from_numpy, [*parts, d]), target="sm_89", on_gpu=on_gpu)
    want = (a.double() @ b.double()).numpy() + c.astype(np.float64)
    assert np.array_equal(scattered(d), want.astype(dtype))


def nibbles(values):
    """Eight to a register, the first lowest."""
    shifts = 4 * np.arange(8)
    return ((values.reshape(32, -1, 8) & 15).astype(np.int64) << shifts).sum(-1).astype(np.uint32)


@pytest.mark.parametrize("k", [32, 64])
@pytest.mark.parametrize("kinds", [("s4", "s4"), ("u4", "s4"), ("u4", "u4")])
def test_nibbles(kinds, k):
    g = np.random.default_rng(k)
    bounds = {"s4": (-8, 8), "u4": (0, 16)}
    a, b = (
        g.integers(*bounds[kind], shape)
        for kind, shape in zip(kinds, ((16, k), (k, 8)), strict=True)
    )
    c = g.integers(-1000, 1000, (16, 8)).astype(np.int32)
    parts = [
        nibbles(gathered(a, a_place, k // 2, 8)).view(np.int32),
        nibbles(gathered(b, b_place, k // 4, 8)).view(np.int32),
        gathered(c, c_place, 4),
    ]
    d = np.zeros_like(parts[2])
    name = f"mma.sync.aligned.m16n8k{k}.row.col.s32.{kinds[0]}.{kinds[1]}.s32"
    launch(instruction(name, (4, k // 16, k // 32, 4)), *map(torch.from_numpy, [*parts, d]))
    assert np.array_equal(scattered(d), a @ b + c)


@pytest.mark.parametrize(("rows", "k"), [(8, 4), (16, 4), (16, 8), (16, 16)])
def test_f64(rows, k):
    """Integers, so that the order of the sums cannot matter; then random numbers, closely."""
    g = np.random.default_rng(k)
    halves = rows // 8
    counts = (2 * halves, halves * k // 4, k // 4, 2 * halves)
    for exact in (True, False):
        make = (lambda s: g.integers(-99, 99, s).astype(float)) if exact else g.standard_normal
        a, b, c = make((rows, k)), make((k, 8)), make((rows, 8))

        def a_at(lane, i):
            return lane // 4 + 8 * (i % halves), lane % 4 + 4 * (i // halves)

        parts = [
            gathered(a, a_at, counts[1]),
            gathered(b, lambda lane, i: (lane % 4 + 4 * i, lane // 4), counts[2]),
            gathered(c, c_place, counts[3]),
        ]
        d = np.zeros_like(parts[2])
        name = f"mma.sync.aligned.m{rows}n8k{k}.row.col.f64.f64.f64.f64"
        body = instruction(name, counts, ("f64",) * 4)
        launch(body, *map(torch.from_numpy, [*parts, d]), target="sm_90")
        want = a @ b + c
        for lane in LANES:
            for i in range(counts[0]):
                error = abs(d[lane, i] - want[c_place(lane, i)])
                assert error <= (0 if exact else 1e-14 * k)


REGISTERS = "{t0,t1,t2,t3}, {t0,t1,t2,t3}, {t4,t5}, {t0,t1,t2,t3}"


@pytest.mark.parametrize(
    "name",
    [
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.s8.f32",
        "mma.sync.aligned.m16n8k32.row.col.bf16.e4m3.e4m3.bf16",
        "mma.sync.aligned.m16n8k32.row.row.f32.e4m3.e4m3.f32",
        "mma.sync.aligned.m16n8k32.row.col.satfinite.f32.e4m3.e4m3.f32",
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc",
        "mma.sync.aligned.m16n8k16.row.col.f32.e4m3.e4m3.f32",  # which takes fewer registers
        "mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e4m3.e4m3.f32",
    ],
)
def test_refused(name):
    with pytest.raises(Unsupported):
        emulate(module(f"{name} {REGISTERS};", target="sm_90"))
