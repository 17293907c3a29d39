"""dispatch and combine for CUDA, their PTX run on the CPU: results, bounds, schedules, counts."""

from __future__ import annotations

import shutil

import pytest
import torch

from capmoe_kernels import reference
from cases import generator, normal
from checks import assert_close_to_truth, same_bits
from cuda_permute import FLOATS, WORDS, combine, dispatch, in_order, pairs, row_tokens

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

DTYPES = list(FLOATS)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("words", [1, 31, 33, 256, 700])
def test_dispatch(words, word, seed):
    dtype, columns = torch.bfloat16, words * word // 2
    x = torch.randint(256, (7, words * word), generator=generator(2), dtype=torch.uint8).view(dtype)
    chosen = row_tokens(7, 21)
    out = torch.full((21, columns), 77, dtype=dtype)
    dispatch(out, x, chosen, word, seed)
    live = (chosen >= 0) & (chosen < 7)
    expected = torch.full_like(out, 77)
    expected[live] = reference.dispatch(x, chosen[live])
    assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))


def test_counts_of_dispatch():
    """Rows of 4 KiB: at most 100 warp instructions and 1.05 of the sectors that must move."""
    x, chosen = normal((64, 2048), torch.bfloat16), row_tokens(64, 512).clamp(0, 63)
    counts = dispatch(torch.empty(512, 2048, dtype=torch.bfloat16), x, chosen, 16)
    assert counts["warp_instructions"] <= 100 * 512
    needed = 512 * (4096 + 4096) // 32 + 512 * 4 // 32
    sectors = counts["global_load_sectors"] + counts["global_store_sectors"]
    assert sectors <= 1.05 * needed


SHAPES = [(1, 1, 8, 1), (5, 2, 24, 1), (9, 8, 520, 1), (3, 35, 1032, 1), (6, 7, 37, 1)]
SHAPES += [(5, 7, 512, 2), (3, 35, 2560, 2)]  # with two packs a thread
SHAPES += [(9, 8, 1024, 4), (3, 35, 3072, 4)]  # with four


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "columns", "hidden", "packs"), SHAPES)
def test_combine(tokens, columns, hidden, packs, dtype, seed):
    rows, weights = pairs(tokens, columns, rows=max(1, tokens * columns * 3 // 4))
    y = normal((tokens * columns, hidden), dtype, seed=5)
    unused = torch.ones(len(y), dtype=torch.bool)
    unused[rows[rows >= 0].long()] = False
    y[unused] = torch.nan  # what no expert wrote must not be read
    width = 16 // dtype.itemsize if hidden % 8 == 0 else 1
    out = torch.full((tokens, hidden), torch.nan, dtype=dtype)
    strange = rows.clone()
    strange[rows < 0] = (
        torch.tensor([-1, len(y), 2**31 - 1])
        .int()
        .repeat(tokens * columns)[: int((rows < 0).sum())]
    )
    combine(out, y, strange, weights, width, packs, seed)
    truth = reference.combine(y.double(), rows, weights.double())
    assert_close_to_truth(out, truth, reference.combine(y, rows, weights))
    assert same_bits(out, in_order(y, rows, weights))
    lonely = (rows < 0).all(1)
    assert same_bits(out[lonely], torch.zeros_like(out[lonely]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_schedule_and_no_cut_shows_in_the_bits(dtype):
    rows, weights = pairs(6, 8, rows=40)
    y, outs = normal((48, 1024), dtype), []
    for packs, seed in [(1, 0), (1, 2), (2, 0), (2, 1), (4, 0), (4, 3)]:
        outs.append(torch.empty(6, 1024, dtype=dtype))
        combine(outs[-1], y, rows, weights, 16 // dtype.itemsize, packs, seed)
    assert all(same_bits(out, outs[0]) for out in outs)


@pytest.mark.parametrize(("packs", "limit"), [(4, 1500), (2, 1650)])
def test_counts_of_combine(packs, limit):
    """k=8, H=2048, bf16: warp instructions of PTX a token, and at most 1.02 of the sectors."""
    rows = torch.randperm(64, generator=generator(0)).reshape(8, 8).int()
    y, weights = normal((64, 2048), torch.bfloat16), normal((8, 8))
    out = torch.empty(8, 2048, dtype=torch.bfloat16)
    counts = combine(out, y, rows, weights, 8, packs)
    assert counts["warp_instructions"] <= limit * 8
    needed = (64 * 4096 + 8 * 4096 + 64 * 8) // 32
    sectors = counts["global_load_sectors"] + counts["global_store_sectors"]
    assert sectors <= 1.02 * needed
