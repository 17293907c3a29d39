"""Bugs planted in the gate's kernels: whoever checks the gate must see each of them."""

from __future__ import annotations

import pytest

import planted_cards as cards
import planted_routing as on
from cuda_on_cpu.errors import (
    BadLaunch,
    GlobalRace,
    Hang,
    Misaligned,
    OutOfBounds,
    ReadOnly,
    SharedRace,
)
from planted import SEEDS, WRONG, bugs_of, each, each_probe, emulator_alone, must_surface  # noqa: F401

quickly = on.quickly

BUGS = [
    *bugs_of(
        "gate_marks.cuh",
        ("marks-not-cleared", "asks[i] = 0;\n    __syncthreads();", "asks[i] = 0;",
         on.extra_candidates, SharedRace),
        ("marks-incomplete", "clear_counters(to);\n    __syncthreads();", "clear_counters(to);",
         on.extra_candidates, SharedRace),
        ("plain-mark", "atomicOr(asks + expert, 1u << bit)", "asks[expert] |= 1u << bit",
         on.extra_candidates, SharedRace),
        ("one-expert-more", "e < experts; e += blockDim.x", "e <= experts; e += blockDim.x",
         on.extra_candidates, OutOfBounds),
        ("tile-not-clear", "make_uint4(0, 0, 0, 0);\n    }\n    __syncthreads();",
         "make_uint4(0, 0, 0, 0);\n    }", cards.few_cards, SharedRace),
        ("keys-not-there", "= pair.x;\n    }\n    __syncthreads();", "= pair.x;\n    }",
         cards.few_cards, SharedRace),
        ("key-of-next", "((1u << bit) - 1))] = pair.x", "((2u << bit) - 1))] = pair.x",
         cards.few_cards, WRONG),
        ("unused-key", "if (expert < experts) tile", "tile", cards.cards_of_unused, WRONG),
        ("sixteen-bytes-only", "place <= last; place += 16", "place <= min(last, 15); place += 16",
         cards.few_cards, WRONG),
        ("card-of-first-block", "expert * words + blockIdx.x;\n  auto*",
         "expert * words;\n  auto*", cards.few_cards, (WRONG, GlobalRace)),
        ("top-never-cleared", "nullptr ? experts : 2 * experts", "nullptr ? 2 * experts : experts",
         on.extra_candidates, WRONG),
    ),
    *bugs_of(
        "gate.cu",
        ("sixteen-columns", "(config.columns) + column", "(16) + column", on.many_columns,
         GlobalRace),
        ("warps-for-few", "kMaxWarps = 16", "kMaxWarps = 4", on.extra_candidates, BadLaunch),
    ),
    *bugs_of(
        "gate_two.cuh",
        ("two-bits", "bit < 3; ++bit", "bit < 2; ++bit", cards.cards_of_two_columns, WRONG),
        ("forbidden-asks", "second_used = expert[1] < experts", "second_used = true",
         cards.cards_of_two_columns, (WRONG, OutOfBounds)),
        ("part-not-clear", "    __syncwarp();\n  }\n\n  // `asks`", "  }\n\n  // `asks`",
         cards.cards_of_two_columns, SharedRace),
        ("second-key-not-there", "score[1]);\n      __syncwarp();", "score[1]);",
         cards.cards_of_two_columns, SharedRace),
        ("card-of-own-lane", "(kAllLanes, asks, lane / 4)", "(kAllLanes, asks, lane)",
         cards.cards_of_two_columns, (WRONG, SharedRace)),
    ),
    *bugs_of(
        "gate_wide.cuh",
        ("counter-left", "< kSelectCounters)", "< kSelectCounters - 1)", on.extra_candidates,
         WRONG),
    ),
    *bugs_of(
        "gate_load.cuh",
        ("always-by-16-bytes", "reinterpret_cast<uintptr_t>(logits) % 16 == 0", "true",
         on.no_16_bytes, Misaligned),
        ("logits-not-there", "logits[i];\n  __syncwarp();", "logits[i];", on.no_16_bytes,
         SharedRace),
        ("tail-read-on", "i < count; i += 32) staged", "i <= count; i += 32) staged",
         on.no_16_bytes, OutOfBounds),
        ("in-place", "staged[i] = logits[i]",
         "const_cast<T*>(logits)[i] = to_float(logits[i]) + 0.0f", on.no_16_bytes, ReadOnly),
        ("row-that-is-none", "Layout::row() < rows ? experts - first : 0", "experts - first",
         on.extra_candidates, WRONG),
    ),
    *bugs_of(
        "gate_layout.cuh",
        ("half-a-row", "kLanes; step *= 2) x = max(", "kLanes / 2; step *= 2) x = max(",
         on.extra_candidates, WRONG),
    ),
    *bugs_of(
        "gate_queue.cuh",
        ("equals-win-together", "(tied & lower) == 0", "tied != 0", on.extra_candidates,
         SharedRace),
        ("no-end-mark", "next_[32 * Layout::kPerLane] = Entry::none();", "", on.many_columns,
         SharedRace),
        ("range-never-ends", "    *write = Entry::none();\n", "", on.local_candidates, WRONG),
    ),
    *bugs_of(
        "gate_groups.cuh",
        ("members-not-there", "__syncwarp();\n  group_values", "group_values", on.bias_and_groups,
         SharedRace),
        ("shuffle-by-some", "step = 1; step < sharing",
         "step = 1; group < groups && step < sharing", on.bias_and_groups, Hang),
        ("lanes-count-twice", "i = lane % sharing", "i = 0", on.bias_and_groups, WRONG),
        ("higher-group-first", "other < group)", "other > group)", on.bias_and_groups, WRONG),
    ),
    *bugs_of(
        "gate_sort.cuh",
        ("unstable", "b.bits > a.bits", "b.key() > a.key()", on.extra_candidates, WRONG),
    ),
    *bugs_of(
        "gate_row.cuh",
        ("scratch-of-next-warp", "(scores + Layout::kPlaces)", "(scores + 2 * Layout::kPlaces)",
         on.extra_candidates, (SharedRace, OutOfBounds)),
        ("row-beyond-block", "j >= per_row || row >= rows", "j >= per_row", on.extra_candidates,
         OutOfBounds),
    ),
    *bugs_of(
        "gate_wide.cu",
        ("chosen-not-there", "look();\n  }\n  __syncwarp();", "look();\n  }", on.beyond_registers,
         SharedRace),
        ("half-a-word", "asks[expert] |= 1u << token % kBlockTokens",
         "asks[expert] |= 1u << token % 16", on.beyond_registers, WRONG),
    ),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@each_probe(BUGS)
def test_right_without_a_bug(probe, seed):
    probe(seed)


@each(BUGS)
def test_a_bug_surfaces(bug):
    must_surface(bug)
