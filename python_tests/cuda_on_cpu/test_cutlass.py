"""CUTLASS's GEMMs for sm_80, launched by CUTLASS's own host code, against torch."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const
from cuda_on_cpu import nvcc_kernels as nk
from cuda_on_cpu.device_libraries import call, cutlass_include, library, runtime

INCLUDE = (str(cutlass_include()),)
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32, "s8": torch.int8}


def matrices(kind, m, n, k):
    """A and B [n, k], which tf32 holds exactly, and their product."""
    a, b = nk.integers(17, m, k) - 8, nk.integers(15, n, k) - 7
    expected = a.double() @ b.double().T
    scale = 1 if kind == "s8" else 0.25
    a, b = (a * scale).to(TYPES[kind]), (b * scale).to(TYPES[kind])
    return a, b, expected * scale * scale


# k is no multiple of the tile's, and rows and columns do not fill their tiles.
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [(130, 136, 104), (128, 128, 32), (16, 64, 512)], ids=str)
@pytest.mark.parametrize("kind", TYPES)
def test_gemm(kind, shape, seed):
    m, n, k = shape
    if kind == "s8":
        k = -(-k // 16) * 16
    a, b, expected = matrices(kind, m, n, k)
    d = nk.unwritten(m, n, dtype=torch.int32 if kind == "s8" else torch.float32)
    function = getattr(library("cutlass_gemm", "80", INCLUDE), f"gemm_{kind}")
    with runtime.recording(seed=seed) as record:
        assert call(function, Const(a), Const(b), d, m, n, k) == 0
    assert torch.equal(d.double(), expected)
    assert record.counts["tensor_flops"] >= 2 * m * n * k


@pytest.mark.parametrize("seed", range(4))
def test_grouped_gemm(seed):
    """Ragged experts, one without a token, by fewer blocks than there are tiles."""
    counts, n, k = (70, 0, 64, 3), 136, 72
    a, b = nk.normal(sum(counts), k), nk.normal(len(counts), n, k)
    a, b = a.bfloat16(), b.bfloat16()
    d = nk.unwritten(sum(counts), n, dtype=torch.bfloat16)
    firsts = [sum(counts[:e]) for e in range(len(counts))]
    problems = torch.tensor([[count, n, k] for count in counts], dtype=torch.int32)
    places = [
        torch.tensor([matrix[first].data_ptr() for first in rows])
        for matrix, rows in ((a, firsts), (b, range(len(counts))), (d, firsts))
    ]
    strides = [torch.full((len(counts),), length) for length in (k, k, n)]
    function = library("cutlass_grouped", "80", INCLUDE).gemm_grouped
    held = [Const(a), Const(b), d]
    with runtime.device_memory(*held), runtime.recording(seed=seed) as record:
        lists = map(Const, (*places, *strides))
        assert call(function, Const(problems), len(counts), 3, *lists) == 0
    assert record.launches[0].grid == (3, 1, 1)
    groups = a.double().split(list(counts))
    expected = torch.cat([group @ b[e].double().T for e, group in enumerate(groups)])
    torch.testing.assert_close(d.double(), expected, rtol=1e-2, atol=1e-2)
