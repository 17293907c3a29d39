"""Operands and products for tests of wgmma: in float64, rounded once."""

from __future__ import annotations

import numpy as np
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.wgmma_cases import BYTES, Case, Tile, product_matrix

DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "s8": torch.int8,
    "u8": torch.uint8,
    "f32": torch.float32,
    "s32": torch.int32,
}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(BITS[tensor.element_size()]).numpy()


def numbers(raw: np.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(raw).view(DTYPES[kind]).double()


def operand(kind: str, rows: int, generator: torch.Generator) -> np.ndarray:
    """Random numbers, exact in their type; of tf32 those that its ten bits of mantissa hold."""
    columns = 32 // BYTES[kind]
    if kind in ("s8", "u8"):
        return torch.randint(0, 256, (rows, columns), generator=generator).byte().numpy()
    x = torch.randn(rows, columns, generator=generator)
    if kind == "tf32":
        x = (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return bits(x.to(DTYPES[kind]))


def make_case(n, types, a=None, b=None, *, seed=0, from_registers=False, **options) -> Case:
    """``a`` and ``b`` are keywords of Tile; B lies behind A."""
    d, left, right = types
    generator = torch.Generator().manual_seed(seed)
    tile_a = Tile(64, BYTES[left], **(a or {}))
    behind = -(-tile_a.extent() // 1024) * 1024
    tile_b = Tile(n, BYTES[right], **({"start": behind} | (b or {})))
    if d == "s32":
        before = torch.randint(-(2**20), 2**20, (64, n), generator=generator, dtype=torch.int32)
    else:
        before = torch.randn(64, n, generator=generator).to(DTYPES[d])
    return Case(
        types,
        None if from_registers else tile_a,
        tile_b,
        operand(left, 64, generator),
        operand(right, n, generator),
        bits(before),
        **options,
    )


def expected(case: Case) -> torch.Tensor:
    d, a, b = case.types
    sign = case.negate[0] * case.negate[1]
    total = sign * (numbers(case.left, a) @ numbers(case.right, b).T)
    if case.scale != "0":
        total = total + numbers(case.before, d)
    if d != "s32":  # NumPy rounds once, torch by way of float
        return torch.from_numpy(total.numpy().astype({"f16": np.float16, "f32": np.float32}[d]))
    if case.option == ".satfinite":
        total = total.clamp(-(2.0**31), 2.0**31 - 1)
    return total.long().to(torch.int32)  # which wraps


def agreement(types: tuple[str, str, str]) -> bool | float:
    """How near an H100 comes: it truncates, and keeps fewer bits of sums of 8-bit floats."""
    d, a, _ = types
    if d == "s32":
        return True
    if a in ("e4m3", "e5m2"):
        return 2e-2
    return 2e-3 if d == "f16" else 1e-5


def multiply(case: Case, seed=0, ptx=None, defined=True) -> torch.Tensor:
    """``defined``: no GPU is asked about a case that is wrong on purpose."""
    memory, a, before, out = case.arguments()
    dtype = DTYPES[case.types[0]]
    tensors = [torch.from_numpy(x) for x in (memory, a, before, out)]
    tensors[3] = tensors[3].view(dtype)
    launch = {"seed": seed, "on_gpu": {3: agreement(case.types)} if defined else False}
    report = emulate(ptx or case.ptx())[1, 128, len(memory)](*tensors, len(memory), **launch)
    assert report.warnings == []
    n, k = case.b.lines, case.b.depth
    assert report.counts["tensor_flops"] == 2 * 64 * n * k
    return torch.from_numpy(product_matrix(out)).view(dtype)
