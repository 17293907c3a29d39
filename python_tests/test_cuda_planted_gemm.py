"""Bugs planted in the grouped MLP's CUDA kernels: each must surface, and without it all is well."""

from __future__ import annotations

import shutil

import pytest

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

import planted_mlp as on
from cuda_on_cpu.errors import (
    BadLaunch,
    BarrierDivergence,
    GlobalRace,
    Hang,
    Invalid,
    Misaligned,
    OutOfBounds,
    ReadOnly,
    RegisterRace,
    SharedRace,
)
from planted import SEEDS, WRONG, bugs_of, each, each_probe, emulator_alone, must_surface  # noqa: F401

BF16_MMA = 'f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "'
BF16_SUMS = f'{BF16_MMA}\n        "{{%0, %1, %2, %3}};"\n        : "+f"(sums[0])'

INSTRUCTIONS = bugs_of(
    "mma.cuh",
    ("ldmatrix-registers", '(out[1]), "=r"(out[2])', '(out[2]), "=r"(out[1])', on.few, WRONG),
    ("mma-a-swapped", BF16_MMA, BF16_MMA.replace("%5, %6", "%6, %5"), on.few, WRONG),
    ("mma-of-other-type", "is_same_v<T, __nv_bfloat16>", "is_same_v<T, __half>", on.half, WRONG),
    ("mma-sums-no-input", BF16_SUMS, BF16_SUMS.replace('"+f"', '"=f"'), on.few, WRONG),
    ("no-commit", '"cp.async.commit_group;"', '""', on.few, SharedRace),
    ("copy-of-32-bytes", "selp.b32 bytes, 16", "selp.b32 bytes, 48", on.few, Invalid),
    ("no-wait", '"cp.async.wait_group %0;"', '"// %0"', on.few, SharedRace),
)

SUMS = bugs_of(
    "grouped_gemm_sums.cuh",
    ("rows-read-straight", "Tile::offset(at.warp_row + l % 16, l / 16)",
     "(at.warp_row + l % 16) * Tile::kRowBytes + l / 16 * 16", on.few, WRONG),
    ("step-beside-swizzle", "stage + (b ^ step << 5)", "stage + b + (step << 5)",
     on.few, (WRONG, SharedRace)),
    ("rows-of-accumulator", "slice % 2 * 2 + column", "column * 2 + slice % 2", on.few, WRONG),
    ("float-rows-swizzled-alike", "from_a[i % 2] + i / 2 * 8", "from_a[0] + i * 4",
     on.floats, WRONG),
    ("float-parts-added-twice", "parts[i][j] = 0.0f;", "", on.floats, WRONG),
    ("float-sums-in-one-chain", "kPartStages = 64 /", "kPartStages = 4096 /",
     on.long_float_sums, WRONG),
)  # fmt: skip

TILES = bugs_of(
    "grouped_gemm_tile.cuh",
    ("no-swizzle", "((chunk ^ swizzle) << 4)", "(chunk << 4) + 0 * swizzle",
     on.without_conflicts, WRONG),
    ("staging-forgotten", " + kWarps * kStagingBytes;", ";", on.few, OutOfBounds),
    ("staging-row-of-no-chunks", "(kPartGroups + 1) * 8 * sizeof(T)",
     "(kPartGroups * 8 + 2) * sizeof(T)", on.few, Misaligned),
    ("last-block-unwritten", "threadIdx.x == kWarps * 32 - 1", "threadIdx.x == kWarps * 32",
     on.few, WRONG),
    ("no-barrier-for-the-table", "(min(first, most));\n  __syncthreads();",
     "(min(first, most));", on.few, SharedRace),
    ("barrier-of-some-threads", "__syncthreads();\n  unsigned first",
     "if (begin < end) __syncthreads();\n  unsigned first", on.few, SharedRace),
    ("rows-beyond-the-expert", "min(block_rows, expert.rows - skipped)", "block_rows",
     on.few_in_turn, OutOfBounds),
    ("row-blocks-rounded-down", "first += (experts[e].rows + block_rows - 1)",
     "first += experts[e].rows", on.many_experts, WRONG),
    ("last-blocks-not-together", "min(kTogether, row_blocks - first)", "kTogether",
     on.many_blocks_of_rows, WRONG),
)  # fmt: skip

KERNEL = bugs_of(
    "grouped_gemm.cuh",
    ("wait-for-one-less", "cp_async_wait<Tile::kStages - 2>", "cp_async_wait<Tile::kStages - 1>",
     on.few, SharedRace),
    ("no-barrier-in-the-ring", "__syncthreads();  // the stage", "// the stage",
     on.few, SharedRace),
    ("refilled-while-read", "loader.load(free);", "loader.load(stage);", on.few, SharedRace),
    ("written-straight", "Tile::offset(thread / Tile::kChunks, thread % Tile::kChunks)",
     "thread * 16", on.few, WRONG),
    ("columns-rounded-down", "(weights + Tile::kWeights - 1) / Tile::kWeights",
     "weights / Tile::kWeights", on.few, WRONG),
    ("depth-not-filled-with-zeros", "column_ + k_ < product_.depth ? live_ : 0", "live_",
     on.few, OutOfBounds),
    ("next-piece-too-late", "if (k_ >= product_.depth)", "if (k_ > product_.depth)",
     on.whole_stages, WRONG),
    ("blocks-take-each-piece", "index < count; index += gridDim.x", "index < count; ++index",
     on.few, GlobalRace),
    ("one-row-more-read", "live = row < piece.rows;", "live = row <= piece.rows;",
     on.some, OutOfBounds),
    ("rows-in-32-bits", "(int64_t{row} * product_.depth + column_)",
     "static_cast<int>((row * product_.depth + column_) * sizeof(T)) / int(sizeof(T))",
     on.far_apart, OutOfBounds),
    ("half-of-the-rows-added", "live > Tile::kWarpRows / 2", "live > Tile::kWarpRows",
     on.some, WRONG),
    ("gate-and-up-swapped", "gated && (row & 8) ?", "gated && !(row & 8) ?", on.few, WRONG),
    ("interleaved-rows-in-turn", "Gating::interleaved ? 2 : 1", "Gating::interleaved ? 1 : 1",
     on.interleaved, WRONG),
    ("bias-of-ungated-rows", "bias[map.row(row, piece.column)]", "bias[piece.column + row]",
     on.interleaved, WRONG),
    ("staging-overwritten", "values) {\n    __syncwarp();", "values) {", on.some, SharedRace),
    ("staging-read-early", "__syncwarp();\n    const int first_row", "const int first_row",
     on.few, SharedRace),
    ("rows-of-the-next-expert", "min(Tile::kSliceRows, rows_ - first_row)",
     "Tile::kSliceRows", on.few_in_turn, OutOfBounds),
    ("columns-beyond-the-last", "if (column_ + column >= columns_) continue;", "",
     on.few, (GlobalRace, OutOfBounds)),
    ("written-over-the-input", "out_ = product.out +", "out_ = const_cast<T*>(product.in) +",
     on.few, ReadOnly),
    ("unaligned-tail-stored", "min(columns_ - column_ - column, Tile::kChunk)", "Tile::kChunk",
     on.unaligned, (GlobalRace, OutOfBounds)),
    ("launch-bounds", "__launch_bounds__(Tile::kThreads,", "__launch_bounds__(Tile::kThreads / 2,",
     on.few, BadLaunch),
)  # fmt: skip

ACTIVATION = bugs_of(
    "grouped_gemm_activation.cuh",
    ("clamp-turned-round", "up < -kLimit ?", "up > -kLimit ?", on.far_out, WRONG),
    ("no-one-added", "(up + 1.0f)", "up", on.interleaved, WRONG),
)  # fmt: skip

PRODUCTS = bugs_of(
    "wgmma.cuh",
    ("no-wgmma-fence", '"wgmma.fence.sync.aligned;"', '""', on.warpgroups, RegisterRace),
    ("no-wgmma-commit", '"wgmma.commit_group.sync.aligned;"', '""', on.warpgroups, SharedRace),
    ("no-proxy-fence", '"fence.proxy.async.shared::cta;"', '""', on.warpgroups, SharedRace),
    ("barrier-of-more-threads", "bar.sync 0;", "bar.sync 0, 512;", on.warpgroups, Hang),
    ("swizzle-of-64-bytes", "uint64_t{1} << 62", "uint64_t{2} << 62", on.warpgroups, WRONG),
    ("stride-of-four-rows", "1024 >> 4", "512 >> 4", on.warpgroups, WRONG),
    ("wgmma-sums-no-input", '"+f"(s[g][0])', '"=f"(s[g][0])', on.warpgroups, WRONG),
)  # fmt: skip

ADDING = "if constexpr (decltype(live)::value) "
WARPGROUPS = bugs_of(
    "grouped_gemm_sm90.cuh",
    ("never-waits-for-products", ADDING + "wgmma_wait<1>();", "", on.warpgroups, SharedRace),
    ("last-products-under-way", "wgmma_wait<0>", "wgmma_wait<1>", on.warpgroups,
     (RegisterRace, WRONG)),
    ("no-barrier-before-products", "block_barrier();  // the stage", "// the stage",
     on.warpgroups, SharedRace),
    ("warps-without-rows-stay-away", "first_row < piece.rows",
     "int(threadIdx.x / 32 * 16) < piece.rows", on.warpgroups, BarrierDivergence),
    ("no-barrier-after-the-last", "block_barrier();  // all", "// all", on.warpgroups, SharedRace),
    ("refilled-under-products", "if (step > 0)", "if (step >= 0)", on.warpgroups, SharedRace),
    ("copies-one-too-late", "cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>",
     on.warpgroups, SharedRace),
    ("depth-of-a-chunk", "rows + step * 2, weights", "rows + step, weights", on.warpgroups, WRONG),
)  # fmt: skip

BUGS = [*INSTRUCTIONS, *SUMS, *TILES, *KERNEL, *ACTIVATION, *PRODUCTS, *WARPGROUPS]


@each_probe(BUGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_right_without_a_bug(probe, seed):
    probe(seed)


@each(BUGS)
def test_a_bug_surfaces(bug):
    must_surface(bug)
