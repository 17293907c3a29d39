"""Launches of kernels/tma_wgmma_gemm.cu: as it is, and with one line of it changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cuda_on_cpu import Const, compile_cuda, emulate
from cuda_on_cpu.tensor_map import tensor_map

NAME = "tma_wgmma_gemm"
SOURCE = Path(__file__).parent / "kernels" / f"{NAME}.cu"
TILE_M, TILE_N, TILE_K, STAGES = 128, 64, 64, 3
SHARED = 2 * (STAGES * (TILE_M + TILE_N) * TILE_K + TILE_M * TILE_N) + 16 * STAGES
M, N, K = 200, 72, 264  # no dimension is a multiple of its tile; five tiles through three stages


@dataclass(frozen=True)
class Maps:
    """What the host says of A, B and C; a bug may be here, too."""

    box_a: tuple[int, int] = (TILE_M, TILE_K)
    box_b: tuple[int, int] = (TILE_N, TILE_K)
    box_c: tuple[int, int] = (64, TILE_N)
    swizzle: int = 128


def changed(old: str, new: str, name: str) -> str:
    """The source with one piece replaced, and its kernel under another name."""
    source = SOURCE.read_text()
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
    return source.replace(old, new).replace(NAME, name)


def translation_unit(sources: list[str]) -> str:
    """Several variants, each in a namespace, so that nvcc starts once."""
    includes, bodies = {}, []
    for i, source in enumerate(sources):
        lines = source.splitlines()
        includes |= dict.fromkeys(line for line in lines if line.startswith("#include"))
        body = [line for line in lines if not line.startswith("#include")]
        bodies += [f"namespace variant_{i} {{", *body, "}"]
    return "\n".join([*includes, *bodies, ""])


def compiled(source: str) -> str:
    return compile_cuda(source, "sm_90a", (f"-I{SOURCE.parent}",))


def numbers(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).bfloat16()


def run(ptx: str, seed: int, name: str = NAME, maps: Maps = Maps(), shape=(M, N, K)):
    """C, what it should be, and the report. Rows of C beyond its last must not be touched."""
    m, n, k = shape
    a, b = numbers(m, k), numbers(n, k)
    room = torch.full((m + 64, n), 7.0, dtype=torch.bfloat16)
    c = room[:m]
    args = (
        tensor_map(Const(a), maps.box_a, swizzle=maps.swizzle),
        tensor_map(Const(b), maps.box_b, swizzle=maps.swizzle),
        tensor_map(c, maps.box_c),
    )
    grid = -(-m // TILE_M), -(-n // TILE_N)
    launch = {"seed": seed, "max_steps": 2_000_000, "on_gpu": 2e-2}
    report = emulate(ptx, name)[grid, 384, SHARED](*args, -(-k // TILE_K), **launch)
    assert (room[m:] == 7).all()
    return c, a.float() @ b.float().T, report
