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

EXPERTS, COLUMNS = 60, 4
archs = pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
pytestmark = pytest.mark.usefixtures("poison")  # nobody has zeroed the workspace


def run(asked, **emulation):
    """The outputs, and what ran."""
    c = asked.capacity
    with triton_emulation(**emulation), recording() as record:
        out = select(
            *(asked.ids, asked.weights, asked.scores, asked.token_mask, asked.token_priority),
            *(asked.num_experts, asked.top_k, c.ratio, c.limit, c.rounding, c.policy),
            *("topk_first" if asked.topk_first else "score", c.max_experts_per_token),
            *(asked.rounds, c.experts_per_device or 1, c.seed, asked.kept_weight_sum),
            *(asked.layout, asked.row_alignment, asked.num_rows),
        )
    assert record.warnings == []
    return dict(zip(cs.OUTPUTS, out, strict=True)), record


def check(asked, **emulation):
    out, record = run(asked, **emulation)
    asked.assert_selected(out)
    assert record.names == ["select_kernel"] * (asked.ids.numel() > 0)
    assert record.synchronisations == record.fills == record.copies == []
    return record


def asking(tokens, experts=EXPERTS, columns=COLUMNS, seed=0, levels=3, **options):
    """Distinct experts, lower ones more popular; scores of ``levels`` + 1 values, or of many."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, experts, generator=g) + torch.linspace(2, 0, experts)
    ids = noise.argsort(dim=1, descending=True)[:, :columns].int().contiguous()
    scores, weights = torch.rand(2, tokens, columns, generator=g)
    scores = scores if levels is None else (scores * levels).round() / levels
    return cs.Asked(ids, weights, scores.contiguous(), experts, **options)


def mask(tokens):
    return torch.arange(tokens) % 3 != 1


def classes(tokens):
    return (torch.arange(tokens) % 4 - 2) * 2**61


FEATURES = {
    "dropless": {},
    "score": {"capacity": cm.Capacity(factor=1.0)},
    "keep_first": {"capacity": cm.Capacity(limit=3, policy="keep_first")},
    "keep_last": {"capacity": cm.Capacity(0.7, rounding="floor", policy="keep_last")},
    "random": {"capacity": cm.Capacity(1.0, policy="random", seed=2**40 + 7)},
    "nobody": {"capacity": cm.Capacity(limit=0)},
    "topk_first": {"capacity": cm.Capacity(0.6), "top_k": 2, "topk_first": True},
    "device": {"capacity": cm.Capacity(0.7, scope="device", experts_per_device=12)},
    "few": {"capacity": cm.Capacity(max_experts_per_token=2), "kept_weight_sum": 1.0},
    "few_of_score": {"capacity": cm.Capacity(0.8, max_experts_per_token=2), "top_k": 3},
    "reroute": {"capacity": cm.Capacity(factor=0.9), "top_k": 1, "rounds": 4},
    "reroute_dropless": {"top_k": 2, "rounds": 2},
    "mask": {"capacity": cm.Capacity(1.0), "token_mask": mask},
    "mask_limit": {"capacity": cm.Capacity(limit=9), "token_mask": mask, "layout": "padded"},
    "priority": {"capacity": cm.Capacity(0.5), "token_priority": classes},
    "padded": {"capacity": cm.Capacity(1.0), "layout": "padded", "row_alignment": 7},
    "aligned": {"capacity": cm.Capacity(1.0), "kept_weight_sum": 2.5, "row_alignment": 16},
    "everything": {
        "capacity": cm.Capacity(
            factor=0.75,
            policy="random",
            seed=2**63 - 1,
            max_experts_per_token=2,
            scope="device",
            experts_per_device=12,
        ),
        "top_k": 2,
        "rounds": 3,
        "topk_first": True,
        "token_mask": mask,
        "token_priority": classes,
        "kept_weight_sum": 1.5,
        "row_alignment": 8,
    },
}


@archs
@pytest.mark.parametrize("feature", FEATURES)
def test_feature(arch, feature):
    for seed, tokens in ((0, 0), (1, 1), (2, 33), (3, 257)):
        options = {name: f(tokens) if callable(f) else f for name, f in FEATURES[feature].items()}
        check(asking(tokens, seed=seed, **options), arch=arch, seed=seed)


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
