"""CUTLASS 3 on sm_90 (TMA, mbarriers, wgmma), launched by its own host code, against torch."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const
from cuda_on_cpu import nvcc_kernels as nk
from cuda_on_cpu.device_libraries import call, cutlass_include, library, runtime

INCLUDE = (str(cutlass_include()),)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cluster", ["gemm_alone", "gemm_in_pairs"])
@pytest.mark.parametrize("shape", [(256, 128, 128), (200, 136, 328)], ids=str)
def test_gemm(cluster, shape, seed):
    """Whole tiles, and tiles whose rows, columns and depth end early."""
    m, n, k = shape
    a, b = nk.normal(m, k, dtype=torch.bfloat16), nk.normal(n, k, dtype=torch.bfloat16)
    d = nk.unwritten(m, n)
    function = getattr(library("cutlass_sm90", "90a", INCLUDE), cluster)
    with runtime.recording(seed=seed, arch="sm_90") as record:
        assert call(function, Const(a), Const(b), d, m, n, k) == 0
    torch.testing.assert_close(d.double(), a.double() @ b.double().T, rtol=1e-3, atol=1e-3)
    assert record.counts["tensor_flops"] >= 2 * m * n * k
