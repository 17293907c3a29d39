"""Kernels that nvcc compiles for sm_80, run on the CPU, against torch."""

from __future__ import annotations

from functools import partial

import pytest

from cuda_on_cpu import nvcc_kernels as nk

SLOTS = ["slots_by_shuffle", "slots_by_cub"]

CASES = [
    *[partial(nk.softmax_rows, columns=c) for c in (1, 31, 128, 260, 1001)],
    nk.topk_gate,
    partial(nk.topk_gate, tokens=1, experts=64, top_k=8),
    partial(nk.topk_gate, tokens=5, experts=8, top_k=8),
    *[partial(nk.slots, name=name) for name in SLOTS],
    *[partial(nk.slots, tokens=1, experts=3, name=name) for name in SLOTS],
    *[partial(nk.slots, tokens=2048, experts=256, name=name) for name in SLOTS],
    *[partial(nk.chained_scan, count=c) for c in (1, 256, 1000)],
    nk.grouped_gemm,
    partial(nk.grouped_gemm, counts=(64,), columns=64, depth=32),
    partial(nk.grouped_gemm, counts=(1, 130), columns=64, depth=64),
    *[partial(nk.sort_scores, count=c) for c in (1, 500, 512)],
    *[partial(nk.scan_rows, columns=c) for c in (3, 512, 1300)],
    *[partial(nk.sum_rows, rows=r, columns=c) for r, c in ((4, 32), (10, 77))],
    nk.largest_of_16,
    *[partial(nk.count_bins, count=c) for c in (1, 512, 3000)],
    nk.count_bytes,
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("run", CASES, ids=nk.describe)
def test_against_torch(run, seed):
    outcome = run(nk.compiled(nk.source_of(run)), nk.Launch(seed))
    assert outcome.right()
    assert outcome.report.warnings == []


def test_counts_of_the_gemm():
    """Four tiles of 64 rows have rows (70 is two), times two of 64 columns."""
    counts = nk.grouped_gemm(nk.compiled("gemm"), nk.Launch()).report.counts
    tiles, steps = 4 * 2, 160 // 32
    assert counts["tensor_flops"] == tiles * 2 * 64 * 64 * 160
    assert counts["barriers"] == tiles * steps
    assert counts["atomics"] == 0


def test_stores_of_a_full_tile():
    """A warp stores two bf16 a lane: eight rows of 16 bytes, each a sector of its own."""
    one_tile = {"counts": (64,), "columns": 64, "depth": 32}
    counts = nk.grouped_gemm(nk.compiled("gemm"), nk.Launch(), **one_tile).report.counts
    assert counts["global_store_requests"] == 64 * 64 // 2 // 32
    assert counts["global_store_sectors"] == 8 * counts["global_store_requests"]


def test_counts_of_the_histogram():
    """A warp's atomics are one request: 3000 elements in shared, 4 * 64 bins in global memory."""
    counts = nk.count_bins(nk.compiled("cub_sorts"), nk.Launch()).report.counts
    assert counts["atomics"] == -(-3000 // 32) + 4 * 64 // 32
    assert counts["barriers"] == 4 * 2
    # 3000 consecutive ints are read by full warps but for the last
    assert counts["global_load_requests"] == -(-3000 // 32)
    assert counts["global_load_sectors"] == 3000 * 4 // 32


def test_swizzle_leaves_no_bank_conflict():
    """An 8x8 matrix is one wavefront, a warp's copy of 16 bytes a lane four; without it more."""
    swizzled = nk.grouped_gemm(nk.compiled("gemm"), nk.Launch()).report.counts
    warp_steps = 8 * (160 // 32) * 4  # of eight ldmatrix.x4 and four cp.async each
    assert swizzled["shared_wavefronts"] == warp_steps * (8 * 4 + 4 * 4)
    straight = nk.compiled("gemm", "(chunk ^ (row / 2 % 4))", "chunk")
    conflicting = nk.grouped_gemm(straight, nk.Launch())
    assert conflicting.right()
    assert conflicting.report.counts["shared_requests"] == swizzled["shared_requests"]
    assert conflicting.report.counts["shared_wavefronts"] > swizzled["shared_wavefronts"]
