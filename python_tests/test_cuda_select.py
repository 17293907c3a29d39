"""mark and select of the CUDA backend: the reference's bits, whatever the schedule."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capmoe_kernels as cm

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

import cuda_select as cs

SEEDS = range(4)
DROPLESS = cm.Capacity()
BLOCKS = pytest.mark.parametrize("warps", [8, 16])


def random_ids(tokens, columns, num_experts, seed=0, dtype=torch.int32):
    """Distinct experts per token, lower ones more popular."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, num_experts, generator=g) + torch.linspace(2, 0, num_experts)
    return noise.argsort(dim=1, descending=True)[:, :columns].to(dtype).contiguous()


def floats(tokens, columns, seed=0, levels=None):
    """From 0 to 1; of so many values only, where levels are given."""
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.rand(tokens, columns, generator=g)
    return x if levels is None else (x * levels).round() / levels


def asking(
    tokens, experts, columns, capacity=DROPLESS, seed=0, levels=None, dtype=torch.int32, **options
):
    ids = random_ids(tokens, columns, experts, seed, dtype)
    scores = floats(tokens, columns, seed, levels)
    weights = floats(tokens, columns, seed + 5)
    return cs.Asked(ids, weights, scores, experts, capacity, **options)


def check(asked, **launch):
    asked.assert_selected(asked.run(**launch))
    return asked.reports[-1].counts


SHAPES = [(0, 8, 2), (1, 8, 2), (2, 1, 1), (31, 8, 8), (32, 60, 4), (33, 8, 3), (257, 64, 8)]
SHAPES += [(1000, 128, 8), (70, 640, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@BLOCKS
def test_dropless(shape, warps):
    for blocks in (1, 3):
        check(asking(*shape), warps=warps, blocks=blocks)


@pytest.mark.parametrize("shape", [*SHAPES[1:], (4300, 9, 3), (300, 512, 1)], ids=str)
def test_blocks_that_need_no_barrier(shape):
    """Nothing bounds the experts; everything else is as everywhere."""
    _, experts, columns = shape
    options = {"row_alignment": 8, "kept_weight_sum": 1.0, "top_k": max(1, columns // 2)}
    for seed, more in enumerate(({}, options, {"layout": "padded"})):
        asked = asking(*shape, seed=seed, dtype=torch.int64 if seed == 1 else torch.int32, **more)
        asked.ids[seed::5] = experts - 1  # a caller's own repeats
        check(asked, warps=0, seed=seed)


@pytest.mark.parametrize("policy", cs.POLICIES)
@BLOCKS
def test_capacity_with_ties(policy, warps):
    for seed, limit in zip(SEEDS, (0, 1, 7, 33), strict=True):
        capacity = cm.Capacity(limit=limit, policy=policy, seed=2**40 + 7)
        check(asking(130, 6, 3, capacity, seed, levels=3), warps=warps, seed=seed)


@BLOCKS
def test_scores_that_no_number_describes(warps):
    """NaN ranks with -inf, -0 with 0; denormals and infinities are numbers."""
    values = [float("nan"), -float("inf"), float("inf"), 0.0, -0.0, 1e-45, -1e-45, -1.0]
    for limit in (3, 17):
        asked = asking(64, 3, 2, cm.Capacity(limit=limit))
        asked.scores = torch.tensor(values).repeat(16).view(64, 2).contiguous()
        check(asked, warps=warps, seed=limit)


@pytest.mark.parametrize(
    ("tokens", "warps", "listed"),
    [(600, 8, 512), (4200, 8, 512), (10300, 16, 1024), (17000, 16, 1024)],
)
def test_more_keys_than_a_warp_or_a_block_lists(tokens, warps, listed):
    """A warp's experts are of 512 asks, a block of 8 warps lists 4096, of 16 warps 16384."""
    for seed, levels in ((0, None), (1, 2)):
        asked = asking(tokens, 2, 2, cm.Capacity(limit=tokens // 3), seed, levels)
        check(asked, warps=warps, blocks=2, seed=seed, listed=listed)


@pytest.mark.parametrize("warps", [8, 16])
@pytest.mark.parametrize(
    ("tokens", "listed"), [(31, 512), (130, 512), (200, 8), (600, 120), (600, 2), (33000, 512)]
)
def test_cards(tokens, listed, warps):
    """Asks and keys of a gate: an expert that everyone asks for, others that few or none do."""
    for seed, levels in ((0, None), (1, 3)):
        for limit in (0, max(3, tokens // 5)):
            asked = asking(tokens, 5, 2, cm.Capacity(limit=limit), seed, levels, top_k=1 + seed)
            asked.ids[asked.ids == 4] = -1
            asked.ids[:, 0] = 0
            asked.ids[:, 1][asked.ids[:, 1] == 0] = 3
            check(asked, warps=warps, blocks=2, seed=seed, listed=listed, cards=True)


@pytest.mark.parametrize("policy", cs.POLICIES)
def test_short_lists(policy):
    """Whether a warp, a block or nobody can list an expert's asks, the same stay."""
    capacity = cm.Capacity(factor=0.5, policy=policy)
    for listed in (2, 8, 40):
        for seed, simple in ((0, True), (1, False), (2, True)):
            asked = asking(200, 6, 3, capacity, seed, levels=(None, 2)[seed % 2])
            check(asked, seed=seed, listed=listed, simple=simple)


def test_long_rows_are_counted_by_blocks():
    """More than 1024 words of one budget."""
    for capacity in (DROPLESS, cm.Capacity(factor=0.7)):
        check(asking(33000, 3, 1, capacity, levels=5), warps=16, blocks=2)
    shared = cm.Capacity(factor=0.5, scope="device", experts_per_device=8)
    check(asking(4200, 8, 2, shared, levels=3), blocks=2, listed=20)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_of_a_caller(dtype):
    """Repeated, negative and too large ids; the first of equal ones counts. K = 4 and 33, 5."""
    for columns, num_experts in ((4, 3), (5, 9), (33, 40)):
        g = torch.Generator().manual_seed(columns)
        ids = torch.randint(-2, num_experts + 2, (65, columns), generator=g).to(dtype)
        scores = floats(65, columns, levels=2)
        for top_k in (columns, 2):
            capacity = cm.Capacity(limit=9)
            asked = cs.Asked(ids, floats(65, columns, 3), scores, num_experts, capacity, top_k)
            check(asked, seed=columns)


def test_a_row_beyond_the_callers_buffer_is_not_written():
    asked = asking(40, 4, 2)
    asked.__class__ = type("Short", (cs.Asked,), {"num_rows": 50})
    got = asked.run()  # an access out of bounds raises
    assert got["tokens_per_expert"].sum() == 80
    assert got["row_tokens"].min() >= 0


def draw_case(r: random.Random) -> tuple[cs.Asked, dict]:
    """One adversarial combination of all options, and how it is launched."""
    tokens = r.choice([0, 1, 2, 31, 32, 33, 100, 257])
    experts = r.choice([1, 2, 8, 12, 60, 64, 128])
    columns = min(experts, r.choice([1, 2, 3, 4, 8, experts if experts <= 16 else 8]))
    rounds = min(columns, r.choice([1, 1, 1, 2, 3]))
    unit = r.choice([d for d in range(1, experts + 1) if experts % d == 0]) if rounds == 1 else 1
    unit = unit if r.random() < 0.5 else 1
    options = {"policy": r.choice(cs.POLICIES), "seed": r.choice([0, 2**63 - 1, 12345])}
    options |= r.choice(
        [{"limit": r.choice([0, 1, 3, 10, 50, 1000])}, {"factor": r.choice([0.0, 0.3, 1.0, 1.1])}]
    )
    options["rounding"] = r.choice(["ceil", "floor"])
    if r.random() < 0.3:
        options["max_experts_per_token"] = r.randint(1, columns)
    if unit > 1:
        options |= {"scope": "device", "experts_per_device": unit}
    g = torch.Generator().manual_seed(r.randrange(2**31))
    ids = random_ids(
        tokens, columns, experts, r.randrange(99), r.choice([torch.int32, torch.int64])
    )
    if r.random() < 0.3:
        ids = torch.randint(-1, experts + 1, (tokens, columns), generator=g).to(ids.dtype)
    scores = floats(tokens, columns, r.randrange(99), r.choice([None, 1, 3])) * r.choice(
        [1, -1, 100]
    )
    if r.random() < 0.3:
        scores[torch.rand(tokens, columns, generator=g) < 0.2] = r.choice([float("nan"), -0.0])
    classes = torch.randint(-2, 2, (tokens,), generator=g) * r.choice([1, 2**40, 2**62])
    weights, top_k = floats(tokens, columns, 9), r.choice([columns, max(1, columns // 2)])
    asked = cs.Asked(
        *(ids, weights, scores, experts, cm.Capacity(**options), top_k),
        token_mask=torch.rand(tokens, generator=g) < 0.7 if r.random() < 0.4 else None,
        token_priority=classes if r.random() < 0.4 else None,
        kept_weight_sum=r.choice([None, None, 1.0, 2.5]),
        layout=r.choice(["packed", "packed", "padded"]) if unit == 1 else "packed",
        row_alignment=r.choice([1, 3, 8, 16]),
        rounds=rounds,
        topk_first=r.random() < 0.4,
    )
    launch = {
        "warps": r.choice([8, 8, 16]),
        "listed": r.choice([None, None, 1, 5, 30]),
        "simple": asked.simple and r.random() < 0.5,
        "blocks": r.choice([1, 2, 5]),
        "seed": r.randrange(4),
    }
    return asked, launch


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_any_combination(number):
    asked, launch = draw_case(random.Random(number))
    check(asked, **launch)


def test_every_schedule_gives_the_same_bits():
    capacity = cm.Capacity(factor=0.8, max_experts_per_token=3)
    classes = torch.arange(100) % 3
    asked = asking(100, 12, 4, capacity, levels=3, top_k=2, token_priority=classes, rounds=3)
    for seed in SEEDS:
        for warps, blocks in ((8, 1), (8, 2), (16, 5)):
            check(asked, warps=warps, blocks=blocks, seed=seed)


# Warp instructions of PTX per pair, of one block: waiting for others depends on the schedule.
# They are what was reached: a change that costs more must say so here.
@pytest.mark.parametrize(
    ("shape", "factor", "warps", "most"),
    [
        ((64, 64, 8), None, 0, 3.5),
        ((1024, 64, 8), None, 0, 3.7),
        ((1024, 256, 8), None, 0, 6.6),
        ((4096, 64, 8), None, 8, 1.7),
        ((4096, 128, 8), None, 8, 2.0),
        ((4096, 8, 2), None, 0, 5.6),
        ((4096, 64, 8), 1.0, 8, 5.5),
    ],
    ids=str,
)
def test_instructions_of_select(shape, factor, warps, most):
    tokens, _, columns = shape
    asked = asking(*shape, cm.Capacity(factor))
    asked.assert_selected(asked.run(warps=warps, blocks=1, repeats=False))
    mark, select = (
        report.counts["warp_instructions"] / (tokens * columns) for report in asked.reports
    )
    assert select <= most
    assert mark <= (4.0 if tokens > 64 else 6.0)


@pytest.mark.parametrize(
    ("tokens", "classes", "most"), [(12000, 1, 2.4), (20000, 1, 4.0), (12000, 3, 6.0)], ids=str
)
def test_instructions_of_an_expert_that_everyone_asks_for(tokens, classes, most):
    """Per ask, to cut it: whether a block can list the keys or not, and with priorities."""
    weights = floats(tokens, 1)
    ids = torch.zeros(tokens, 1, dtype=torch.int32)
    priority = None if classes == 1 else torch.arange(tokens) % classes
    spent = []
    for limit in (tokens // 3, tokens):
        capacity = cm.Capacity(limit=limit)
        asked = cs.Asked(ids, weights, weights, 1, capacity, token_priority=priority)
        asked.assert_selected(asked.run(warps=16, blocks=1, repeats=False))
        spent.append(asked.reports[-1].counts["warp_instructions"])
    assert (spent[0] - spent[1]) / tokens <= most
