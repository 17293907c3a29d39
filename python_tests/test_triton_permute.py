"""dispatch and combine of Triton, their PTX run on the CPU: results, bounds, schedules, counts."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from capmoe_kernels import reference
from cases import generator, normal
from checks import assert_close_to_truth, same_bits
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime.triton_operators import UseEmulatedTriton, why_absent

if why_absent() is not None:
    pytest.skip(f"triton-emulated: {why_absent()}", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
machines = pytest.mark.parametrize(
    ("arch", "seed"), [("sm_80", 0), ("sm_80", 3), ("sm_90", 0), ("sm_90", 3)]
)
ops = torch.ops.capmoe


@contextmanager
def emulated(arch="sm_80", seed=0):
    """Every op runs its Triton kernels, of which the emulator has nothing to say."""
    with UseEmulatedTriton(), runtime.recording(arch=arch, seed=seed) as record:
        yield record
    assert record.warnings == []


def row_tokens(tokens, rows, seed=0):
    """Tokens of rows, a third of them padding, and indices that no routing of ours would hold."""
    out = torch.randint(tokens, (rows,), generator=generator(seed), dtype=torch.int32)
    out[torch.rand(rows, generator=generator(seed + 1)) < 0.3] = -1
    out[1:3] = torch.tensor([tokens, 2**31 - 1])
    return out


@machines
@dtypes
@pytest.mark.parametrize("hidden", [1, 7, 24, 512, 1040])
def test_dispatch(poison, hidden, dtype, arch, seed):
    """Live rows are their tokens', the others are left as they were."""
    x, chosen = normal((7, hidden), dtype), row_tokens(7, 21)
    with emulated(arch, seed) as record:
        out = ops.dispatch(x, chosen)
    live = (chosen >= 0) & (chosen < 7)
    expected = torch.full_like(out, torch.nan)
    expected[live] = reference.dispatch(x, chosen[live])
    assert same_bits(out[live], expected[live])
    assert out[~live].isnan().all()
    assert record.names == ["dispatch_kernel"]


def test_dispatch_of_any_strides():
    flat, chosen = normal((7 * 48 + 1,), torch.bfloat16), row_tokens(7, 21).clamp(0, 6)
    wide = flat[:-1].view(7, 48)
    for x in [flat[1:].view(7, 48), wide[:, ::2], wide[:, 3:19], wide.t().contiguous().t()]:
        with emulated():
            assert same_bits(ops.dispatch(x, chosen), x[chosen.long()].contiguous())
    with emulated():
        assert same_bits(ops.dispatch(wide, chosen[::2]), wide[chosen[::2].long()])


def test_counts_of_dispatch():
    """Rows of 4 KiB: at most 115 warp instructions and 1.05 of the sectors that must move."""
    x, chosen = normal((64, 2048), torch.bfloat16), row_tokens(64, 512).clamp(0, 63)
    with emulated() as record:
        ops.dispatch(x, chosen)
    assert record.counts["warp_instructions"] <= 115 * 512
    needed = 512 * (4096 + 4096) // 32 + 512 * 4 // 32
    sectors = record.counts["global_load_sectors"] + record.counts["global_store_sectors"]
    assert sectors <= 1.05 * needed


def pairs(tokens, columns, rows, seed=0):
    """(rows [T, K], weights [T, K]): every row at most once, dropped ones, a token with none."""
    order = torch.randperm(max(rows, tokens * columns), generator=generator(seed))
    chosen = order[: tokens * columns].reshape(tokens, columns)
    chosen = torch.where(chosen < rows, chosen, -1).int()
    chosen[tokens // 2] = -1
    return chosen, normal((tokens, columns), seed=seed + 1)


@machines
@dtypes
@pytest.mark.parametrize(
    ("tokens", "columns", "hidden"), [(1, 1, 8), (9, 8, 2064), (3, 35, 520), (40, 7, 37)]
)
def test_combine(poison, tokens, columns, hidden, dtype, arch, seed):
    rows, weights = pairs(tokens, columns, rows=max(1, tokens * columns * 3 // 4))
    y = normal((tokens * columns, hidden), dtype, seed=5)
    unused = torch.ones(len(y), dtype=torch.bool)
    unused[rows[rows >= 0].long()] = False
    y[unused] = torch.nan  # what no expert wrote must not be read
    strange, dropped = rows.clone(), rows < 0
    nowhere = torch.tensor([-1, len(y), 2**31 - 1, -(2**31)]).int().repeat(tokens * columns)
    strange[dropped] = nowhere[: int(dropped.sum())]
    weights[dropped] = torch.inf
    with emulated(arch, seed) as record:
        out = ops.combine(y, strange, weights)
    truth = reference.combine(y.double(), rows, weights.double())
    assert_close_to_truth(out, truth, reference.combine(y, rows, weights))
    lonely = (rows < 0).all(1)
    assert same_bits(out[lonely], torch.zeros_like(out[lonely]))
    assert record.names == ["combine_kernel"]


@dtypes
def test_no_schedule_shows_in_the_bits(dtype):
    rows, weights = pairs(6, 8, rows=40)
    y, outs = normal((48, 1024), dtype), []
    for arch, seed in [("sm_80", 0), ("sm_80", 2), ("sm_90", 0), ("sm_90", 3)]:
        with emulated(arch, seed):
            outs.append(ops.combine(y, rows, weights))
    assert all(same_bits(out, outs[0]) for out in outs)


def test_combine_of_any_strides():
    rows, weights = pairs(6, 4, rows=20)
    y = normal((24, 48), torch.float16)
    with emulated():
        expected = ops.combine(y, rows, weights)
        for view in [y.t().contiguous().t(), y.repeat_interleave(2, 1)[:, ::2]]:
            assert same_bits(ops.combine(view, rows.t().contiguous().t(), weights), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_to_do(dtype):
    """No rows and no tokens launch nothing; tokens without columns or without rows are zero."""
    none, rows = torch.empty(0, 24, dtype=dtype), torch.zeros(5, 3, dtype=torch.int32)
    with emulated() as record:
        assert ops.dispatch(none, rows[:0, 0]).shape == (0, 24)
        assert ops.combine(none, rows[:0], rows[:0].float()).shape == (0, 24)
        assert record.names == []
        assert not ops.combine(none, rows, rows.float()).any()
        assert not ops.combine(normal((4, 24), dtype), rows[:, :0], rows[:, :0].float()).any()


def test_counts_of_combine():
    """k=8, H=2048, bf16: at most 2600 warp instructions a token and 1.08 of the sectors."""
    rows = torch.randperm(64, generator=generator(0)).reshape(8, 8).int()
    y, weights = normal((64, 2048), torch.bfloat16), normal((8, 8))
    with emulated() as record:
        ops.combine(y, rows, weights)
    assert record.counts["warp_instructions"] <= 2600 * 8
    needed = (64 * 4096 + 8 * 4096 + 64 * 8) // 32
    sectors = record.counts["global_load_sectors"] + record.counts["global_store_sectors"]
    assert sectors <= 1.08 * needed
