"""Triton's matmul by tensor descriptors on sm_90: TMA, mbarriers and wgmma, against torch."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from cuda_on_cpu import Const, emulate
from cuda_on_cpu.errors import EmulationError

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from cuda_on_cpu.test_triton_tma import compile_for_sm90, host_descriptor  # noqa: E402

SEEDS = range(4)
SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8e4nv"}
BLOCKS = {"block_m": 64, "block_n": 64, "block_k": 64}


@triton.jit
def matmul_of_descriptors(
    a, b, c, depth, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr
):
    """C = A B^T."""
    m, n = tl.program_id(0) * block_m, tl.program_id(1) * block_n
    total = tl.zeros([block_m, block_n], dtype=tl.float32)
    for k in range(0, depth, block_k):
        total = tl.dot(a.load([m, k]), b.load([n, k]).T, total)
    c.store([m, n], total.to(c.dtype))


@functools.cache
def built(dtype):
    kind, out = SHORT[dtype], "fp16" if dtype.itemsize == 1 else SHORT[dtype]
    signature = {"a": f"tensordesc<{kind}[64,64]>", "b": f"tensordesc<{kind}[64,64]>"}
    signature |= {"c": f"tensordesc<{out}[64,64]>", "depth": "i32"}
    return compile_for_sm90(matmul_of_descriptors, signature, ("depth",), **BLOCKS)


def run(dtype, seed, shape=(100, 80, 272), ptx=None):
    m, n, k = shape
    kernel = built(dtype)
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(rows, k, generator=g).to(dtype) for rows in (m, n))
    c = torch.zeros(m, n, dtype=torch.float16 if dtype.itemsize == 1 else dtype)
    metas = kernel.metadata.tensordesc_meta
    descriptors = [
        host_descriptor(*pair) for pair in zip((Const(a), Const(b), c), metas, strict=True)
    ]
    args = [*(word for words in descriptors for word in words), k, None, None]
    shared = kernel.metadata.shared
    launch = emulate(ptx or kernel.asm["ptx"])[(-(-m // 64), -(-n // 64)), 128, shared]
    report = launch(*args, seed=seed, on_gpu=2e-2)
    return c, a.float() @ b.float().T, report


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_matmul(dtype, seed):
    c, want, report = run(dtype, seed)
    unit = torch.finfo(c.dtype).eps
    torch.testing.assert_close(c.float(), want, rtol=unit, atol=1e-4)
    assert report.warnings == []
    assert report.counts["tensor_flops"] >= 2 * want.numel() * 272
    assert report.counts["bulk_copies"] > 0


def test_it_is_what_it_should_be():
    ptx = built(torch.bfloat16).asm["ptx"]
    for piece in ("cp.async.bulk.tensor.2d", "mbarrier.try_wait", "wgmma.mma_async"):
        assert piece in ptx


WAIT_2 = "wgmma.wait_group.sync.aligned 2;"
BUGS = {
    "too_few_bytes": (r"_, \[(%r\d+)\], 16384;", r"_, [\1], 8192;"),
    "wait_group_off_by_one": ("wgmma.wait_group.sync.aligned 1;", WAIT_2),
    "no_final_wait": ("wgmma.wait_group.sync.aligned 0;", ""),
    "no_wgmma_fence": ("wgmma.fence.sync.aligned;", ""),
    "no_proxy_fence": ("fence.proxy.async.shared::cta;", ""),
    "no_wait_for_a_tile": (
        r"mbarrier.try_wait.parity.shared::cta.b64 complete, \[%r\d+\], (%r\d+);",
        r"setp.eq.u32 complete, \1, \1;",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs(name):
    ptx = built(torch.bfloat16).asm["ptx"]
    old, new = BUGS[name]
    mutant, planted = re.subn(old, new, ptx)
    assert planted, old
    for seed in SEEDS:
        with pytest.raises(EmulationError):
            run(torch.bfloat16, seed, ptx=mutant)
