"""Matrix instructions: fragments laid out as the PTX ISA draws them, products in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from cuda_on_cpu.ptx_snippets import at, launch

LANES = range(32)


class Shape(NamedTuple):
    """k, the operands' type, elements in a register, and the registers of A and of B."""

    k: int
    kind: str
    packed: int
    a: int
    b: int


SHAPES = [
    Shape(16, "f16", 2, 4, 2),
    Shape(16, "bf16", 2, 4, 2),
    Shape(8, "f16", 2, 2, 1),
    Shape(8, "bf16", 2, 2, 1),
    Shape(8, "tf32", 1, 4, 2),
    Shape(4, "tf32", 1, 2, 1),
    Shape(32, "s8", 4, 4, 2),
    Shape(32, "u8", 4, 4, 2),
    Shape(16, "s8", 4, 2, 1),
]
DTYPE = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "s8": torch.int8,
    "u8": torch.uint8,
}


def a_index(shape, lane, i):
    """(row, column) of element i: registers alternate between row and row + 8, then move in k."""
    register, element = divmod(i, shape.packed)
    row = lane // 4 + 8 * (register % 2)
    return row, lane % 4 * shape.packed + element + 4 * shape.packed * (register // 2)


def b_index(shape, lane, i):
    register, element = divmod(i, shape.packed)
    return lane % 4 * shape.packed + element + 4 * shape.packed * register, lane // 4


def c_index(lane, i):
    return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2


def fragment(matrix, index, count):
    """[32, count]: each lane's elements in the order of its registers."""
    places = [[index(lane, i) for i in range(count)] for lane in LANES]
    rows, columns = torch.tensor(places).unbind(-1)
    return matrix[rows, columns].contiguous()


def unfragment(values, rows=16, columns=8):
    matrix = torch.zeros(rows, columns, dtype=values.dtype)
    for lane in LANES:
        for i in range(4):
            matrix[c_index(lane, i)] = values[lane, i]
    return matrix


def multiply(shape, a, b, c, types, option="", exact=True):
    """D = A B + C by one mma of one warp."""
    accumulators = 4 if c.element_size() == 4 else 2
    fragments = [
        fragment(a, lambda lane, i: a_index(shape, lane, i), shape.a * shape.packed),
        fragment(b, lambda lane, i: b_index(shape, lane, i), shape.b * shape.packed),
        fragment(c, c_index, 4),
    ]
    d = torch.zeros_like(fragments[2])
    counts = (shape.a, shape.b, accumulators)
    body = f".reg .b32 a<{shape.a}>, b<{shape.b}>, c<{accumulators}>, d<{accumulators}>;\n"
    for name, pointer, n in zip("abc", range(3), counts, strict=True):
        body += at(f"g{pointer}", 4 * n)
        body += "".join(f"ld.global.b32 {name}{i}, [x0+{4 * i}];" for i in range(n)) + "\n"
    names = [
        "{" + ", ".join(f"{name}{i}" for i in range(n)) + "}"
        for name, n in zip("dabc", (accumulators, *counts), strict=True)
    ]
    body += f"mma.sync.aligned.m16n8k{shape.k}.row.col{option}.{types} {', '.join(names)};\n"
    body += at("g3", 4 * accumulators)
    body += "".join(f"st.global.b32 [x0+{4 * i}], d{i};" for i in range(accumulators))
    # Hardware cuts off where it adds; small integers are exact.
    launch(body, *fragments, d, on_gpu=True if exact else {3: 1e-5})
    return unfragment(d)


def matrices(shape, seed, integers=False):
    g = torch.Generator().manual_seed(seed)
    dtype = DTYPE[shape.kind]
    sizes = (16, shape.k), (shape.k, 8), (16, 8)
    if not dtype.is_floating_point:
        low, high = (-128, 128) if dtype == torch.int8 else (0, 256)
        a, b = (torch.randint(low, high, size, generator=g).to(dtype) for size in sizes[:2])
        return a, b, torch.randint(-(2**20), 2**20, sizes[2], generator=g, dtype=torch.int32)
    if integers:
        a, b, c = (torch.randint(-8, 9, size, generator=g).float() for size in sizes)
        return a.to(dtype), b.to(dtype), c
    a, b, c = (torch.randn(size, generator=g) for size in sizes)
    if shape.kind == "tf32":  # what conversion to tf32 leaves: ten bits of mantissa
        a, b = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b))
    return a.to(dtype), b.to(dtype), c


def name_of(shape, accumulator):
    return f"{accumulator}.{shape.kind}.{shape.kind}.{accumulator}"


def ident(shape):
    return f"m16n8k{shape.k}-{shape.kind}"


@pytest.mark.parametrize("shape", SHAPES, ids=ident)
def test_mma(shape):
    """Small integers must come out exactly, random floats within f32's error."""
    floats = DTYPE[shape.kind].is_floating_point
    for integers in (True, False):
        a, b, c = matrices(shape, 100, integers)
        types = name_of(shape, "f32" if floats else "s32")
        got = multiply(shape, a, b, c, types, exact=integers or not floats)
        want = a.double() @ b.double() + c.double()
        if integers or not floats:
            assert torch.equal(got.double(), want)
        else:
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=ident)
def test_f16_accumulators(shape):
    a, b, c = matrices(shape, 101)
    got = multiply(shape, a, b, c.half(), name_of(shape, "f16"))
    want = a.double() @ b.double() + c.half().double()
    torch.testing.assert_close(got.double(), want, rtol=2.0**-10, atol=2.0**-8)
    a, b, c = matrices(shape, 102, integers=True)
    got = multiply(shape, a, b, c.half(), name_of(shape, "f16"))
    assert torch.equal(got.double(), a.double() @ b.double() + c.double())


def test_every_element_of_the_operands_reaches_its_place():
    """A single one in A picks a row of B."""
    shape = SHAPES[1]
    _, b, _ = matrices(shape, 103)
    for row, k in [(0, 0), (3, 9), (8, 7), (15, 15), (12, 1)]:
        a = torch.zeros(16, 16, dtype=torch.bfloat16)
        a[row, k] = 1
        got = multiply(shape, a, b, torch.zeros(16, 8), name_of(shape, "f32"))
        want = torch.zeros(16, 8)
        want[row] = b[k].float()
        assert torch.equal(got, want)


def test_mixed_signs_and_saturation():
    shape = SHAPES[6]
    a, _, c = matrices(shape, 104)
    b = matrices(SHAPES[7], 105)[1]
    got = multiply(shape, a, b, c, "s32.s8.u8.s32")
    assert torch.equal(got.double(), a.double() @ b.double() + c.double())
    # all terms of one sign, so that the order of the additions cannot matter
    a, c = a.clamp(min=0), torch.full_like(c, 2**31 - 100_000)
    want = a.double() @ b.double() + c.double()
    got = multiply(shape, a, b, c, "s32.s8.u8.s32", ".satfinite")
    assert torch.equal(got.double(), want.clamp(-(2**31), 2**31 - 1))
    got = multiply(shape, a, b, c, "s32.s8.u8.s32")
    assert torch.equal(got.double(), (want + 2**31) % 2**32 - 2**31)
