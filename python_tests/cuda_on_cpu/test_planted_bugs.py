"""Bugs planted in the kernels that pass: each must surface under one of four interleavings."""

from __future__ import annotations

from functools import partial

import pytest

from cuda_on_cpu import nvcc_kernels as nk
from cuda_on_cpu.errors import (
    BadLaunch,
    BarrierDivergence,
    EmulationError,
    GlobalRace,
    Hang,
    Misaligned,
    OutOfBounds,
    ReadOnly,
    SharedRace,
    Trap,
)

SEEDS = range(4)
WRONG, WARNING = "wrong result", "warning"

odd_softmax = partial(nk.softmax_rows, columns=131)
few_experts = partial(nk.topk_gate, experts=8, top_k=4)
slots_by_cub = partial(nk.slots, name="slots_by_cub")
many_tiles = partial(nk.chained_scan, count=10_000)
many_blocks = partial(nk.count_bins, blocks=24)


def edit(case, run, old, new, surfaces, which=0):
    """A replacement in the source of `run`."""
    return pytest.param(run, (old, new, which), {}, surfaces, id=case)


def misuse(case, run, surfaces, **launch):
    """The kernel as it is, launched wrongly."""
    return pytest.param(run, ("", "", 0), launch, surfaces, id=case)


def no_barrier(case, run, comment, barrier="__syncthreads();"):
    """The barrier that carries the comment is gone."""
    return edit(case, run, f"{barrier}  // {comment}", f"// {comment}", SharedRace)


BARRIERS = [
    no_barrier("partials-unwritten", nk.softmax_rows, "every warp has written"),
    no_barrier("partials-overwritten", nk.softmax_rows, "the next reduction may"),
    no_barrier("lanes-scores", nk.topk_gate, "the other lanes' scores", "__syncwarp();"),
    no_barrier("counts-not-zero", nk.slots, "the counts are zero"),
    no_barrier("counts-incomplete", nk.slots, "the counts are complete"),
    no_barrier("rows-not-started", slots_by_cub, "counts[w][e] is now"),
    no_barrier("warp-totals", nk.slots, "every warp's total is there"),
    no_barrier("warp-totals-scanned", nk.slots, "and their prefix sum"),
    no_barrier("count-read-late", nk.slots, "all lanes have read", "__syncwarp(active);"),
    no_barrier("count-written-late", nk.slots, "the counts are up to date", "__syncwarp();"),
    no_barrier("tile-unknown", nk.chained_scan, "the tile is known"),
    no_barrier("carry-unknown", nk.chained_scan, "the sum of all earlier tiles"),
    no_barrier("ring-refilled", nk.grouped_gemm, "everyone's copies are there"),
    no_barrier("load-to-scan", nk.scan_rows, "load to scan"),
    no_barrier("scan-to-store", nk.scan_rows, "scan to store"),
    no_barrier("bins-not-zero", nk.count_bins, "the block's counts are zero"),
    edit(
        "barrier-of-two-warps",
        nk.softmax_rows,
        "__syncthreads();  // every warp",
        "if (warp < 2) __syncthreads();  // every warp",
        (BarrierDivergence, SharedRace),
    ),
    edit(
        "barrier-of-half-a-warp",
        nk.topk_gate,
        "__syncwarp();  // the other",
        "__syncwarp(); if (lane < 16) __syncthreads();  // the other",
        BarrierDivergence,
    ),
    edit(
        "shuffle-without-some-lanes",
        few_experts,
        "kept = reduce_warp(kept, Plus());",
        "if (lane < experts) kept = reduce_warp(kept, Plus());",
        (EmulationError, WARNING),
    ),
]

ATOMICS = [
    edit(
        "shared-count", nk.count_bins, "atomicAdd(&mine[bins[i]], 1)", "++mine[bins[i]]", SharedRace
    ),
    edit(
        "global-count",
        many_blocks,
        "atomicAdd(&counts[threadIdx.x], mine[threadIdx.x])",
        "counts[threadIdx.x] += mine[threadIdx.x]",
        GlobalRace,
    ),
    edit("tile-ticket", many_tiles, "atomicAdd(next_tile, 1)", "(*next_tile)++", GlobalRace),
    edit("flag-never-set", nk.chained_scan, "atomicExch(&ready[tile], 1);", "", Hang),
]

BOUNDS = [
    edit("read-one-on", odd_softmax, "row[i] = source[i];", "row[i] = source[i + 1];", OutOfBounds),
    edit("write-one-on", nk.softmax_rows, "target[i] = row", "target[i + 1] = row", OutOfBounds),
    edit("write-before", nk.softmax_rows, "target[i] = row", "target[i - 1] = row", OutOfBounds),
    edit("shared-one-on", nk.softmax_rows, "row[i] / total", "row[i + 1] / total", OutOfBounds),
    edit("no-tail", nk.slots, "min(tokens, first + share)", "first + share", OutOfBounds),
    edit("one-expert-more", nk.slots, "thread < experts)", "thread <= experts)", OutOfBounds),
    edit("flag-before-first", nk.chained_scan, "if (tile > 0)", "if (tile >= 0)", OutOfBounds),
    edit("rows-read", nk.grouped_gemm, "first_row + row < end_row;", "true;", OutOfBounds),
    edit("rows-written", nk.grouped_gemm, "if (row < end_row)", "if (true)", OutOfBounds),
    edit(
        "no-padding",
        nk.sort_scores,
        "positions[i] < count ? scores[positions[i]] : -INFINITY",
        "scores[positions[i]]",
        OutOfBounds,
    ),
    edit("vectors-always", odd_softmax, "columns % 4 == 0;", "true;", Misaligned),
    edit("ring-off-by-eight", nk.grouped_gemm, "(ring));", "(ring)) + 8;", Misaligned),
    edit("uncounted-start", nk.count_bins, "mine[threadIdx.x] = 0;", ";", WARNING),
    edit("trap", nk.sort_scores, "float keys", "if (count == 500) __trap(); float keys", Trap),
]

TENSOR_CORES = [
    edit("registers-of-a", nk.grouped_gemm, '(to[1]), "=r"(to[2])', '(to[2]), "=r"(to[1])', WRONG),
    edit(
        "registers-of-b", nk.grouped_gemm, '(to[1]), "=r"(to[2])', '(to[2]), "=r"(to[1])', WRONG, 1
    ),
    edit("not-transposed", nk.grouped_gemm, "x4.trans.shared", "x4.shared", WRONG),
    edit("f16-for-bf16", nk.grouped_gemm, "f32.bf16.bf16.f32", "f32.f16.f16.f32", WRONG),
    edit("c-swapped", nk.grouped_gemm, "{%0, %1, %2, %3};", "{%0, %1, %3, %2};", WRONG),
    edit("c-not-an-input", nk.grouped_gemm, '"+f"(c[0])', '"=f"(c[0])', WRONG),
    edit("a-swapped", nk.grouped_gemm, "{%4, %5, %6, %7}", "{%4, %6, %5, %7}", WRONG),
    edit("b-swapped", nk.grouped_gemm, "{%8, %9}", "{%9, %8}", WRONG),
    edit(
        "a-read-straight",
        nk.grouped_gemm,
        "load_matrices(left[i], tile_a + place_in_a(row, chunk))",
        "load_matrices(left[i], tile_a + row * 64 + chunk * 16)",
        WRONG,
    ),
    edit(
        "b-written-straight",
        nk.grouped_gemm,
        "copy_async(tile_b + place_in_b(row, chunk)",
        "copy_async(tile_b + row * 128 + chunk * 16",
        WRONG,
    ),
    edit("no-wait", nk.grouped_gemm, "wait_for_copies<kStages - 2>();", "", SharedRace),
    edit(
        "wait-for-one-less",
        nk.grouped_gemm,
        "wait_for_copies<kStages - 2>();",
        "wait_for_copies<kStages - 1>();",
        SharedRace,
    ),
    edit(
        "first-copies-uncommitted",
        nk.grouped_gemm,
        "fill(step);\n    commit_copies();",
        "fill(step);",
        SharedRace,
    ),
    edit(
        "next-copies-uncommitted",
        nk.grouped_gemm,
        "fill(step + kStages - 1);\n    commit_copies();",
        "fill(step + kStages - 1);",
        SharedRace,
    ),
    edit(
        "refilled-while-read", nk.grouped_gemm, "fill(step + kStages - 1)", "fill(step)", SharedRace
    ),
]

ARITHMETIC = [
    edit("shuffle-distance", nk.softmax_rows, "int offset = 16;", "int offset = 8;", WRONG),
    edit("shuffle-direction", nk.slots, "__shfl_up_sync", "__shfl_down_sync", WRONG),
    edit("lanes-up-to-me", nk.slots, "(1u << lane) - 1", "(2u << lane) - 1", WRONG),
    edit("ties-to-the-last", nk.topk_gate, "other < expert)", "other > expert)", WRONG),
    edit("ascending", nk.sort_scores, "SortDescending", "Sort", WRONG),
]

LAUNCHES = [
    misuse("constant-output", nk.softmax_rows, ReadOnly, const_output=True),
    misuse("constant-atomic", nk.count_bins, ReadOnly, const_output=True),
    misuse("short-output", nk.grouped_gemm, OutOfBounds, short_output=1),
    misuse("row-too-small", nk.softmax_rows, OutOfBounds, shared=4 * 260 - 4),
    misuse("ring-too-small", nk.grouped_gemm, OutOfBounds, shared=3 * 8192 - 16),
    misuse("row-missing", nk.softmax_rows, WRONG, grid=2),
    misuse("row-too-many", nk.softmax_rows, OutOfBounds, grid=4),
    misuse("tiles-missing", nk.grouped_gemm, WRONG, grid=(2, 1, 4)),
    misuse("half-a-block", nk.grouped_gemm, WRONG, block=64),
    misuse("partials-missing", nk.softmax_rows, WARNING, block=64),
    misuse("above-launch-bounds", nk.softmax_rows, BadLaunch, block=256),
    misuse("too-many-threads", nk.softmax_rows, BadLaunch, block=2048),
    misuse("empty-grid", nk.softmax_rows, BadLaunch, grid=0),
    misuse("too-much-shared", nk.softmax_rows, BadLaunch, shared=256 * 1024),
]

BUGS = [*BARRIERS, *ATOMICS, *BOUNDS, *TENSOR_CORES, *ARITHMETIC, *LAUNCHES]


def found(run, ptx, seed, launch):
    """What one launch shows: exception classes, a wrong result, a warning."""
    try:
        outcome = run(ptx, nk.Launch(seed, **launch))
    except EmulationError as error:
        return {kind for kind in type(error).__mro__ if issubclass(kind, EmulationError)}
    shown = set() if outcome.right() else {WRONG}
    return shown | {WARNING} if outcome.report.warnings else shown


@pytest.mark.parametrize(("run", "change", "launch", "surfaces"), BUGS)
def test_bug_surfaces(run, change, launch, surfaces):
    ptx = nk.compiled(nk.source_of(run), *change)
    launch = {"on_gpu": False, **launch}  # what a bug does there is nobody's promise
    shown = set().union(*(found(run, ptx, seed, launch) for seed in SEEDS))
    allowed = surfaces if isinstance(surfaces, tuple) else (surfaces,)
    assert shown & set(allowed), f"{allowed} expected, found {shown or 'nothing'}"


UNTOUCHED = list(dict.fromkeys(bug.values[0] for bug in BUGS))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("run", UNTOUCHED, ids=nk.describe)
def test_silent_without_bug(run, seed):
    assert not found(run, nk.compiled(nk.source_of(run)), seed, {})
