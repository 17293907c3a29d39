"""Bugs planted in route's kernel, where select's marks and slots lie in shared memory."""

from __future__ import annotations

import pytest

import planted_routing as on
from cuda_on_cpu.errors import (
    Misaligned,
    OutOfBounds,
    SharedRace,
)
from planted import SEEDS, WRONG, bugs_of, each, each_probe, emulator_alone, must_surface  # noqa: F401

quickly = on.quickly

BUGS = [
    *bugs_of(
        "route.cuh",
        ("not-cleared", "clear_route(state);\n  __syncthreads();", "clear_route(state);",
         on.everyone_stays, SharedRace),
        ("gate-not-done", "__syncthreads();\n  bool decides", "bool decides", on.everyone_stays,
         SharedRace),
        ("weights-not-there", "state.columns);\n    }\n    __syncthreads();",
         "state.columns);\n    }", on.everyone_stays, SharedRace),
        ("scratch-of-a-warp", "int64_t{warps} * gate_words", "gate_words", on.everyone_stays,
         OutOfBounds),
        ("mask-of-pairs", "!state.token_mask[token]", "!state.token_mask[pair]", on.everyone_stays,
         OutOfBounds),
        ("pieces-not-aligned", "(count + 3) / 4 * 4", "count", on.everyone_stays_packed,
         Misaligned),
        ("experts-past-32", "(state.experts + 31) / 32", "max(state.experts / 32, 1)",
         on.everyone_stays_packed, WRONG),
        ("one-list", "warps * pairs : 0", "pairs : 0", on.capacity_binds_many, SharedRace),
        ("arguments-not-there", "__syncthreads();\n  select_in_block", "select_in_block",
         on.capacity_binds, SharedRace),
    ),
    *bugs_of(
        "select_sources.cuh",
        ("pairs-not-there", "team_.sync();\n    if (keys_.made())", "if (keys_.made())",
         on.capacity_binds, SharedRace),
    ),
    *bugs_of(
        "select_team.cuh",
        ("warps-never-wait", "      __syncwarp();", "", on.capacity_binds, SharedRace),
    ),
    *bugs_of(
        "select_tokens.cuh",
        ("plain-second-ask", "atomicOr(&problem.marks.asks[problem.word(expert, token / 32)], 1u",
         "problem.marks.asks[problem.word(expert, token / 32)] |= (1u", on.second_choices,
         SharedRace),
    ),
    *bugs_of(
        "grid_barrier.cuh",
        ("barrier-of-one-block", "if (gridDim.x == 1) return;", "", on.second_choices, OutOfBounds),
    ),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@each_probe(BUGS)
def test_right_without_a_bug(probe, seed):
    probe(seed)


@each(BUGS)
def test_a_bug_surfaces(bug):
    must_surface(bug)
