"""Launches of the kernels for sm_90 in kernels/: what they wrote, and what they should."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cuda_on_cpu import Const, compile_cuda, emulate
from cuda_on_cpu.tensor_map import tensor_map

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

FOLDER = Path(__file__).parent / "kernels"


def compiled(name: str, old: str = "", new: str = "", toolkit: bool = False) -> str:
    """PTX of kernels/`name`.cu for sm_90a, with the first `old` replaced by `new`.

    ``toolkit``: with the functions of cuda::ptx, not those of sm90.cuh.
    """
    source = (FOLDER / f"{name}.cu").read_text()
    assert old in source, f"{name}.cu has no {old!r}"
    flags = (f"-I{FOLDER}", *(("-DTOOLKIT",) if toolkit else ()))
    return compile_cuda(source.replace(old, new, 1) if old else source, "sm_90a", flags)


def launch(ptx, name, grid, block, *args, seed, **options):
    return emulate(ptx, name)[grid, block](*args, seed=seed, max_steps=2_000_000, **options)


def numbers(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-1000, 1000, shape, generator=generator, dtype=torch.int32)


def tile_ring(ptx, seed, tiles=7, swizzle=0):
    """Seven tiles through three stages, the last one partly outside of the tensor."""
    x, y = numbers(52, 64), torch.zeros(52, 64, dtype=torch.int32)
    maps = tensor_map(Const(x), (8, 32), swizzle=swizzle), tensor_map(y, (8, 32))
    report = launch(ptx, "tile_ring", 2, 160, *maps, tiles, seed=seed)
    return y, 3 * x + 1, report


def add_one(ptx, seed):
    x, y = numbers(3 * 256), torch.zeros(3 * 256, dtype=torch.int32)
    report = launch(ptx, "add_one", 3, 256, Const(x), y, seed=seed)
    return y, x + 1, report


def reverse(ptx, seed):
    x, y = numbers(128, 4), torch.zeros(128, 4, dtype=torch.int32)
    report = launch(ptx, "reverse", 1, 128, Const(x), y, seed=seed)
    return y, x.flip(0), report


def spread_bins(ptx, seed):
    values = numbers(700) % 64
    bins = torch.zeros(64, dtype=torch.int32)
    report = launch(ptx, "spread_bins", 8, 64, Const(values), 700, bins, seed=seed)
    return bins, values.bincount(minlength=64).int(), report


def shared_tiles(ptx, seed, tiles=5):
    x, y = numbers(tiles * 256), torch.zeros(256, dtype=torch.int32)
    report = launch(ptx, "shared_tiles", 2, 128, Const(x), y, tiles, seed=seed)
    each = x.view(tiles, 256)
    sums = (each[:, :128] + each.flip(1)[:, :128]).sum(0, dtype=torch.int32)
    return y, sums.repeat(2), report


def grid_scan(ptx, seed):
    blocks = 20
    x = numbers(blocks * 64)
    totals, y = (torch.zeros(n, dtype=torch.int32) for n in (blocks, blocks * 64))
    args = Const(x), totals, y
    report = launch(ptx, "grid_scan", blocks, 64, *args, seed=seed, cooperative=True)
    odd = (x & 1).view(blocks, 64).sum(1)
    return y, (odd.cumsum(0) - odd).int().repeat_interleave(64), report


SOURCES = {
    tile_ring: "tile_ring",
    add_one: "cpp_barrier",
    reverse: "cpp_barrier",
    spread_bins: "clusters",
    shared_tiles: "clusters",
    grid_scan: "clusters",
}
