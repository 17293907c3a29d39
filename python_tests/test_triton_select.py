"""Triton's select, emulated: the reference's bits in one launch, whatever the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import capmoe_kernels as cm
import cuda_select as cs
from cuda_on_cpu.runtime import recording

pytest.importorskip("triton")

import triton

from capmoe_kernels.triton_kernels.select import select
from capmoe_kernels.triton_kernels.select_sync import (
    OPEN,
    close_barrier,
    grid_barrier,
    open_barrier,
)
from cuda_on_cpu.runtime.triton_launch import triton_emulation
from triton_select import FEATURES, arguments, asking, options_of

archs = pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
pytestmark = pytest.mark.usefixtures("poison")  # nobody has zeroed the workspace


def run(asked, **emulation):
    """The outputs, and what ran."""
    with triton_emulation(**emulation), recording() as record:
        out = select(*arguments(asked))
    assert record.warnings == []
    return dict(zip(cs.OUTPUTS, out, strict=True)), record


def check(asked, **emulation):
    out, record = run(asked, **emulation)
    asked.assert_selected(out)
    assert record.names == ["select_kernel"] * (asked.ids.numel() > 0)
    assert record.synchronisations == record.fills == record.copies == []
    return record


@archs
@pytest.mark.parametrize("feature", FEATURES)
def test_feature(arch, feature):
    for seed, tokens in ((0, 0), (1, 1), (2, 33), (3, 257)):
        check(asking(tokens, seed=seed, **options_of(feature, tokens)), arch=arch, seed=seed)


@archs
@pytest.mark.parametrize("seed", [0, 3])
def test_more_tokens(arch, seed):
    for feature in ("dropless", "score"):
        check(asking(1500, seed=seed, **FEATURES[feature]), arch=arch, seed=seed)


@archs
def test_lists_longer_than_registers_hold(arch):
    """2,600 ask for each of two experts."""
    for seed, levels in ((0, 2), (3, None)):
        capacity = cm.Capacity(limit=1100)
        check(asking(2600, 2, 2, seed, levels, capacity=capacity), arch=arch, seed=seed)


@archs
def test_more_experts_than_a_tile(arch):
    for seed, capacity in ((0, cm.Capacity()), (3, cm.Capacity(limit=2))):
        check(asking(40, 300, 3, seed, capacity=capacity), arch=arch, seed=seed)


@archs
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_ids_of_a_caller(arch, dtype):
    """Repeated, negative and too large ones; the first of equal ones counts."""
    g = torch.Generator().manual_seed(7)
    ids = torch.randint(-2, 12, (65, 5), generator=g).to(dtype)
    if dtype == torch.int64:
        ids[::7, 2] += 2**32  # no expert, although its lower half is one
    asked = asking(65, 9, 5, capacity=cm.Capacity(limit=9))
    for top_k in (5, 2):
        check(replace(asked, ids=ids, top_k=top_k), arch=arch)


@archs
def test_scores_that_no_number_describes(arch):
    """NaN ranks with -inf, -0 with 0; denormals and infinities are numbers."""
    values = [float("nan"), -float("inf"), float("inf"), 0.0, -0.0, 1e-45, -1e-45, -1.0]
    for limit in (3, 17, 33):
        asked = asking(64, 3, 2, capacity=cm.Capacity(limit=limit))
        scores = torch.tensor(values).repeat(16).view(64, 2).contiguous()
        check(replace(asked, scores=scores), arch=arch)


def test_a_row_beyond_the_callers_buffer_is_not_written():
    for capacity in (cm.Capacity(), cm.Capacity(limit=30)):
        asked = asking(40, 4, 2, capacity=capacity)
        asked.__class__ = type("Short", (cs.Asked,), {"num_rows": 50})
        got, _ = run(asked)  # an access out of bounds raises
        assert got["tokens_per_expert"].sum() >= 60
        assert got["row_tokens"].min() >= 0


def test_any_strides():
    asked = asking(50, capacity=cm.Capacity(limit=2))
    turned = {name: getattr(asked, name).t().contiguous().t() for name in ("ids", "weights")}
    check(replace(asked, **turned))


def test_no_candidates():
    check(asking(5, 4, 0))


def test_too_many_pairs():
    pairs = torch.zeros(1, 1, dtype=torch.int32).expand(2**30, 1)
    rest = (None, 1, "ceil", "score", "score", None, 1, 1, 0, None, "packed", 1, 1)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*30 pairs"):
        select(pairs, pairs, pairs, None, None, 1, 1, *rest)


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_programs_are_resident_together(multiprocessors):
    asked = asking(257, capacity=cm.Capacity(factor=1.0))
    (launch,) = check(asked, multiprocessors=multiprocessors).launches
    assert launch.cooperative == (launch.grid[0] > 1)
    assert launch.grid[0] <= 2 * multiprocessors


@triton.jit
def pass_on(values, sync, rounds):
    """Adds one to the next program's value, so many times; nobody may be a round ahead."""
    program, programs = triton.language.program_id(0), triton.language.num_programs(0)
    open_barrier(sync)
    passed = grid_barrier(sync, 0)
    for _ in range(rounds):
        value = triton.language.load(values + program)
        passed = grid_barrier(sync, passed)
        triton.language.store(values + (program + 1) % programs, value + 1)
        passed = grid_barrier(sync, passed)
    close_barrier(sync, passed)


@archs
@pytest.mark.parametrize("seed", range(4))
def test_a_barrier_in_memory_of_any_content(arch, seed):
    """Each launch leaves its own words behind, as where a CUDA graph is replayed."""
    sync = torch.full((2,), [0, -1, 2**63 - 1, OPEN.value - 1][seed])
    values = torch.arange(5)
    with triton_emulation(arch=arch, seed=seed):
        for launch in range(3):
            pass_on[(5,)](values, sync, 5, launch_cooperative_grid=True)
            assert torch.equal(values, torch.arange(5) + 5 * (launch + 1))


# Warp instructions of PTX per pair where it shows how many there are: one program does all. They
# are what was reached: a change that costs more must say so here.
@pytest.mark.parametrize(
    ("shape", "factor", "most"),
    [
        ((64, 64, 8), None, 15.1),
        ((64, 64, 8), 1.0, 46.0),
        ((1024, 64, 8), None, 12.5),
        ((1024, 8, 2), None, 7.9),
        ((1024, 8, 2), 1.0, 16.0),
    ],
    ids=str,
)
def test_instructions(shape, factor, most):
    asked = asking(*shape, levels=None, capacity=cm.Capacity(factor))
    counts = check(asked, multiprocessors=1).counts
    assert counts["warp_instructions"] / asked.ids.numel() <= most
