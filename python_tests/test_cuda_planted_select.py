"""Bugs planted in mark's and select's kernels: whoever checks them must see each of them."""

from __future__ import annotations

import pytest

import planted_routing as on
from cuda_on_cpu.errors import (
    BadLaunch,
    BarrierDivergence,
    GlobalRace,
    Hang,
    Invalid,
    Misaligned,
    OutOfBounds,
    ReadOnly,
    SharedRace,
    Trap,
)
from planted import SEEDS, WRONG, bugs_of, each, each_probe, emulator_alone, must_surface  # noqa: F401

quickly = on.quickly

BUGS = [
    *bugs_of(
        "grid_barrier.cuh",
        ("no-fence", "fence.acq_rel.gpu;\\n\\t", "", on.few_words, GlobalRace),
        ("relaxed-wait", "ld.acquire.gpu", "ld.relaxed.gpu", on.few_words, GlobalRace),
        ("first-wait-only", "target_ += gridDim.x", "target_ = gridDim.x", on.rerouting,
         GlobalRace),
        ("no-barrier-after", "}\n    __syncthreads();", "}", on.rerouting, GlobalRace),
        ("waits-for-one-more", "seen < target_", "seen <= target_", on.few_words, Hang),
    ),
    *bugs_of(
        "select_kernel.cuh",
        ("limits-not-there", "(problem);\n      barrier.sync();", "(problem);", on.rerouting,
         GlobalRace),
        ("lists-too-long", "team_warps == 1 ? 512", "team_warps == 1 ? 2048", on.few_words,
         BadLaunch),
        ("padding-counted", "problem.config, real)", "problem.config, problem.tokens)",
         on.devices_with_classes, WRONG),
    ),
    *bugs_of(
        "select_team.cuh",
        ("scan-skips-a-lane", "place >= step", "place > step", on.few_words, GlobalRace),
        ("sums-not-there", "inclusive;\n    __syncthreads();", "inclusive;", on.blocks_decide,
         SharedRace),
        ("bin-not-told", "value.z;\n    }\n    __syncthreads();", "value.z;\n    }",
         on.blocks_decide, SharedRace),
        ("barrier-of-4-threads", "      __syncthreads();",
         '      asm volatile("bar.sync 1, %0;" ::"r"(kWarps) : "memory");', on.blocks_decide,
         Invalid),
    ),
    *bugs_of(
        "select_threshold.cuh",
        ("bins-incomplete", "count();\n  team.sync();", "count();", on.blocks_decide, SharedRace),
        ("bins-cleared-early", "__syncwarp();  // the bins", "// the bins", on.many_words,
         SharedRace),
    ),
    *bugs_of(
        "select_best.cuh",
        ("plain-bins", "atomicAdd(&team.bins[key >> shift & (kBins - 1)], 1)",
         "++team.bins[key >> shift & (kBins - 1)]", on.blocks_decide, SharedRace),
        ("verdicts-over-keys", "warp.sync();\n  if (low < asked)", "if (low < asked)", on.few_words,
         SharedRace),
        ("higher-token-first", "i < low)", "i > low)", on.few_words, WRONG),
        ("outgrown-check", "Cut cut{budget, asked};",
         "Cut cut{budget, asked};\n  if (asked > kFewKeys) __trap();", on.many_words, Trap),
    ),
    *bugs_of(
        "select_compete.cuh",
        ("list-overrun", "asked <= team.listed && ", "", on.more_keys_than_listed, SharedRace),
    ),
    *bugs_of(
        "select_budget.cuh",
        ("bit-31-forgotten", "bit < 32", "bit < 31", on.devices_with_classes, WRONG),
    ),
    *bugs_of(
        "select_keys.cuh",
        ("sign-of-class", " ^ (uint64_t{1} << 63)", "", on.devices_with_classes, WRONG),
        ("seed-of-32-bits", "static_cast<uint32_t>(seed >> 32)", "0", on.hashed, WRONG),
    ),
    *bugs_of(
        "select_number.cuh",
        ("always-four-words", "kWords == 4 && words % 4 == 0", "kWords == 4", on.aligned_rows,
         Misaligned),
    ),
    *bugs_of(
        "select_problem.cuh",
        ("four-of-six", "config.columns % 4 == 0 && ", "", on.rerouting, Misaligned),
    ),
    *bugs_of(
        "select_rows.cuh",
        ("row-beyond-buffer", "(row) < static_cast<unsigned>(problem.rows)", "(row) <= INT32_MAX",
         on.short_buffer, OutOfBounds),
        ("pads-over-rows", "offsets[expert] + counts[expert]", "offsets[expert]", on.aligned_rows,
         GlobalRace),
        ("weights-not-there", "< 0) return;\n  __syncthreads();", "< 0) return;", on.aligned_rows,
         GlobalRace),
        ("weights-in-place", "(problem.out.weights + pair, weights",
         "(const_cast<float*>(problem.weights) + pair, weights", on.aligned_rows, ReadOnly),
    ),
    *bugs_of(
        "select_tokens.cuh",
        ("mask-beyond-tokens", "token < problem.tokens && problem.token", "problem.token",
         on.devices_with_classes, OutOfBounds),
        ("plain-count", "atomicAdd(&problem.marks.counters[kRealTokens], real)",
         "problem.marks.counters[kRealTokens] += real", on.devices_with_classes, GlobalRace),
        ("one-thread-votes", "__syncthreads_or(any) && threadIdx.x == 0",
         "threadIdx.x == 0 && __syncthreads_or(any)", on.rerouting, BarrierDivergence),
        ("ties-to-column", "rival < expert", "other < j", on.rerouting, WRONG),
    ),
    *bugs_of(
        "select_apart.cuh",
        ("counts-not-there", "__syncthreads();\n  if (threadIdx.x < 32)", "if (threadIdx.x < 32)",
         on.apart, SharedRace),
        ("sum-of-whole-warp", "through, lanes - 1, lanes)", "through, lanes - 1)", on.apart, WRONG),
    ),
    *bugs_of(
        "mark.cu",
        ("bits-not-cleared", "__syncthreads();\n  if (config", "if (config", on.few_words,
         SharedRace),
        ("plain-bits", "atomicOr(&block.asks[at], bit)", "block.asks[at] |= bit", on.few_words,
         SharedRace),
        ("arrivals-left", "blockIdx.x == 0 && threadIdx.x", "blockIdx.x == 1 && threadIdx.x",
         on.few_words, (GlobalRace, OutOfBounds)),
        ("words-beyond-row", "if (word >= here) continue;", "", on.few_words,
         (GlobalRace, OutOfBounds)),
        ("every-repeat-marks", "valid && first)", "valid)", on.ids_of_a_caller, WRONG),
        ("33-columns-in-a-warp", "config.columns <= 32", "config.columns <= 33", on.ids_of_a_caller,
         Hang),
    ),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@each_probe(BUGS)
def test_right_without_a_bug(probe, seed):
    probe(seed)


@each(BUGS)
def test_a_bug_surfaces(bug):
    must_surface(bug)
