"""Bugs planted in mark's and select's kernels: whoever checks them must see each of them."""

from __future__ import annotations

import pytest

import planted_cards as cards
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

# Somewhere behind a tensor, where another may lie: an input, or one that others write.
BEYOND = (OutOfBounds, ReadOnly, GlobalRace, WRONG)

BUGS = [
    *bugs_of(
        "grid_barrier.cuh",
        ("no-fence", "fence.acq_rel.gpu;\\n\\t", "", on.few_asks, GlobalRace),
        ("relaxed-wait", "ld.acquire.gpu", "ld.relaxed.gpu", on.few_asks, GlobalRace),
        ("first-wait-only", "target_ += gridDim.x", "target_ = gridDim.x", on.rerouting,
         GlobalRace),
        ("no-barrier-after", "}\n    __syncthreads();", "}", on.rerouting, GlobalRace),
        ("waits-for-one-more", "seen < target_", "seen <= target_", on.few_asks, Hang),
    ),
    *bugs_of(
        "select_kernel.cuh",
        ("limits-not-there", "(problem);\n      barrier.sync();", "(problem);", on.rerouting,
         GlobalRace),
        ("padding-counted", "    budget = problem.budget_of", "    problem.budget_of",
         on.devices_with_classes, WRONG),
        ("sums-too-long", "partial[2 * kWarps + 3]", "partial[8192 * kWarps]", on.few_asks,
         BadLaunch),
        ("offsets-not-there", "__syncthreads();\n  finish_experts", "finish_experts", on.few_asks,
         SharedRace),
    ),
    *bugs_of(
        "select_compete.cuh",
        ("list-overrun", "asks > warp.listed", "asks > 2 * warp.listed", on.longer_than_lists,
         SharedRace),
        ("warps-vote-alone", "__syncthreads_or(left)", "__any_sync(kWholeWarp, left)",
         on.longer_than_lists, GlobalRace),
        ("experts-beyond-last", "min(start + each, problem.experts)", "start + each",
         on.more_experts_than_warps, OutOfBounds),
    ),
    *bugs_of(
        "select_sources.cuh",
        ("pairs-not-there", "team_.sync();\n    if (keys_.made())", "if (keys_.made())",
         on.few_asks, SharedRace),
        ("keys-not-there", "load_listed(start);\n    }\n    team_.sync();",
         "load_listed(start);\n    }", on.few_asks, SharedRace),
        ("place-of-asks", "size_t(item) * kCardWords + 1", "size_t(item) * kCardWords",
         cards.asks_on_cards, (WRONG, GlobalRace)),
        ("one-key-for-all", "? place++ :", "? place :", cards.asks_on_cards, WRONG),
        ("list-of-a-block-overrun", "asked_ <= team_.listed && ", "", on.longer_than_lists,
         OutOfBounds),
    ),
    *bugs_of(
        "select_team.cuh",
        ("scan-skips-a-step", "int step = 1", "int step = 2", on.few_asks, GlobalRace),
        ("sum-comes-from-nowhere", '"+r"(value)', '"=r"(value)', on.few_asks, WRONG),
        ("sums-not-there", "inclusive;\n    __syncthreads();", "inclusive;", on.longer_than_lists,
         SharedRace),
        ("demand-not-there", "= value;\n    __syncthreads();", "= value;", on.long_rows,
         SharedRace),
        ("bits-not-there", "(bits.any);\n    }\n    __syncthreads();", "(bits.any);\n    }",
         on.longer_than_lists, SharedRace),
        ("bin-not-told", "value.z;\n    }\n    __syncthreads();", "value.z;\n    }",
         on.longer_than_lists, SharedRace),
        ("barrier-of-8-threads", "      __syncthreads();",
         '      asm volatile("bar.sync 1, %0;" ::"r"(kWarps) : "memory");', on.longer_than_lists,
         Invalid),
    ),
    *bugs_of(
        "select_threshold.cuh",
        ("plain-bins", "atomicAdd(&team.bins[key >> shift & (kBins - 1)], 1)",
         "++team.bins[key >> shift & (kBins - 1)]", on.longer_than_lists, SharedRace),
        ("bins-incomplete", "});\n    team.sync();", "});", on.longer_than_lists, SharedRace),
        ("bins-cleared-early", "__syncwarp();  // the bins", "// the bins", on.longer_than_lists,
         SharedRace),
        ("digit-below-bit-0", "shift = max(shift - 8, 0)", "shift = shift - 8", on.few_asks, Hang),
        ("own-lane-is-above", "through - sum, lane)", "through, lane)", on.few_asks, WRONG),
        ("digit-below-highest", "24 - __clz(differing)", "23 - __clz(differing)", on.few_asks,
         GlobalRace),
        ("higher-token-first", "bits ^= 0x80000000u >> __clz(bits)", "bits &= bits - 1",
         on.few_asks, WRONG),
    ),
    *bugs_of(
        "select_best.cuh",
        ("outgrown-check", "Cut cut{budget, asked};",
         "Cut cut{budget, asked};\n  if (asked > team.listed) __trap();", on.longer_than_lists,
         Trap),
        ("words-beyond-row", "if (word >= problem.words) continue;", "", on.few_asks,
         (GlobalRace, OutOfBounds)),
    ),
    *bugs_of(
        "select_budget.cuh",
        ("bit-31-forgotten", "bit < 32", "bit < 31", on.long_rows, WRONG),
        ("sign-of-class", " ^ uint64_t { 1 } << 63", "", on.devices_with_classes, WRONG),
    ),
    *bugs_of(
        "select_keys.cuh",
        ("first-token-last", "? ~static_cast", "? -static_cast", on.other_policies, WRONG),
        ("seed-of-32-bits", "static_cast<uint32_t>(seed >> 32)", "0", on.other_policies, WRONG),
    ),
    *bugs_of(
        "select_number.cuh",
        ("cards-side-by-side", "card[i * kCardWords]", "card[i]", cards.asks_on_cards,
         (WRONG, GlobalRace, OutOfBounds)),
        ("always-four-words", "kWords == 4 && words % 4 == 0", "kWords == 4", on.aligned_rows,
         Misaligned),
        ("sum-of-whole-warp", "through, lanes - 1, lanes)", "through, lanes - 1)",
         on.more_experts_than_warps, WRONG),
        ("all-ask-from-the-start", "problem.reroutes() ? 0 : asks[i]", "asks[i]", on.rerouting,
         WRONG),
        ("rows-beyond-last", "own < problem.experts ? own : -1", "own",
         on.more_experts_than_warps, OutOfBounds),
    ),
    *bugs_of(
        "select_problem.cuh",
        ("never-unaligned", "places % 16 == 0", "true", on.unaligned_weights, Misaligned),
        ("pairs-of-experts-share", "sharing() const { return 1; }", "sharing() const { return 2; }",
         on.few_asks, WRONG),
        ("repeats-are-plain", " && !marks.repeats", "", on.ids_of_a_caller, WRONG),
    ),
    *bugs_of(
        "select_pairs.cuh",
        ("row-beyond-buffer", "(row) < static_cast<unsigned>(problem.rows)", "(row) <= INT32_MAX",
         on.short_buffer, BEYOND),
        ("ids-below-0", "static_cast<Unsigned>(id) < static_cast<Unsigned>(problem.experts)",
         "id < problem.experts", on.without_repeats, OutOfBounds),
        ("next-token-late", "++column == problem.columns", "column++ == problem.columns",
         on.without_repeats, WRONG),
        ("low-half-twice", "(from)[1]", "(from)[0]", on.without_repeats, WRONG),
    ),
    *bugs_of(
        "select_rows.cuh",
        ("four-of-six", "problem.aligned && fours", "problem.aligned", on.rerouting, Misaligned),
        ("fours-beyond-tokens", "i + 3 < pairs", "i < pairs", on.without_repeats, OutOfBounds),
        ("pads-over-rows", "offsets[expert] + counts[expert]", "offsets[expert]", on.aligned_rows,
         GlobalRace),
        ("weights-not-there", "< 0) return;\n  __syncthreads();", "< 0) return;", on.aligned_rows,
         GlobalRace),
        ("weights-in-place", "problem.out.weights + problem.pair",
         "const_cast<float*>(problem.weights) + problem.pair", on.aligned_rows, ReadOnly),
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
        ("words-of-others", "static_cast<unsigned>(place) < static_cast<unsigned>(memory.own)",
         "place < memory.own", on.apart, OutOfBounds),
    ),
    *bugs_of(
        "mark.cu",
        ("bits-not-cleared", "__syncthreads();\n  if (config", "if (config", on.few_asks,
         SharedRace),
        ("plain-bits", "atomicOr(&block.asks[at], bit)", "block.asks[at] |= bit", on.few_asks,
         SharedRace),
        ("arrivals-left", "blockIdx.x == 0 && threadIdx.x", "blockIdx.x == 1 && threadIdx.x",
         on.few_asks, GlobalRace),
        ("words-beyond-row", "if (word >= here) continue;", "", on.few_asks, OutOfBounds),
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
