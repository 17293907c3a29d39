"""Bugs planted in dispatch's and combine's CUDA kernels: each must surface."""

from __future__ import annotations

import shutil

import pytest
import torch

from capmoe_kernels import reference
from cases import generator, normal
from checks import same_bits

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

import cuda_permute
from cuda_on_cpu.errors import (
    GlobalRace,
    Misaligned,
    OutOfBounds,
    ReadOnly,
    SharedRace,
)
from planted import SEEDS, WRONG, bugs_of, each, each_probe, emulator_alone, must_surface  # noqa: F401


def dispatch(seed: int) -> None:
    """Rows of a whole part, of part of one and of both; the last token goes to the last row."""
    for words in (31, 256, 300):
        x = torch.randint(256, (7, 16 * words), generator=generator(2), dtype=torch.uint8)
        chosen = cuda_permute.row_tokens(7, 21)
        chosen[-1] = 6
        out = torch.full((21, 16 * words), 77, dtype=torch.uint8)
        cuda_permute.dispatch(out, x, chosen, 16, seed)
        live = (chosen >= 0) & (chosen < 7)
        expected = torch.full_like(out, 77)
        expected[live] = reference.dispatch(x, chosen[live])
        assert torch.equal(out, expected)


def combine(seed: int, tokens=9, columns=8, hidden=520, packs=1, dtype=torch.bfloat16) -> None:
    """Four tokens a block, of which the last block lacks some."""
    count = tokens * columns * 2 // 3
    rows, weights = cuda_permute.pairs(tokens, columns, count)
    y = normal((count, hidden), dtype, seed=5)
    strange = rows.clone()
    strange[rows < 0] = torch.tensor([-1, count]).int().repeat(rows.numel())[: (rows < 0).sum()]
    out = torch.full((tokens, hidden), torch.nan, dtype=dtype)
    cuda_permute.combine(out, y, strange, weights, 16 // dtype.itemsize, packs, seed)
    assert same_bits(out, cuda_permute.in_order(y, rows, weights))


def floats(seed: int) -> None:
    """Here the order of the sums shows in most bits."""
    combine(seed, hidden=260, dtype=torch.float32)


def slices(seed: int) -> None:
    """Slices of the columns, in blocks of their own."""
    combine(seed, tokens=3, hidden=2080)


def many_columns(seed: int) -> None:
    """More candidates than lanes."""
    combine(seed, tokens=6, columns=37, hidden=264)


def odd_columns(seed: int) -> None:
    combine(seed, tokens=6, columns=7, hidden=264)


def packs(seed: int) -> None:
    combine(seed, tokens=5, columns=7, hidden=3072, packs=4)


def two_packs(seed: int) -> None:
    combine(seed, tokens=5, columns=7, hidden=2560, packs=2)


DISPATCH = bugs_of(
    "dispatch.cu",
    ("no-end-of-rows", "if (row >= rows) return;", "", dispatch, OutOfBounds),
    ("token-past-the-last", "token >= tokens", "token > tokens", dispatch, OutOfBounds),
    ("padding-not-skipped", "token >= tokens", "int(token) >= int(tokens)", dispatch, OutOfBounds),
    ("one-word-more-read", "< left) words[i]", "<= left) words[i]", dispatch, OutOfBounds),
    ("one-word-more-written", "< left) __stcs", "<= left) __stcs", dispatch,
     (GlobalRace, OutOfBounds)),
    ("part-read-again", "from += kPart, to += kPart", "to += kPart", dispatch, WRONG),
    ("rows-of-a-block", "* kRowsPerBlock + threadIdx.x", "* kWarp + threadIdx.x",
     dispatch, WRONG),
    ("copied-backwards", "__stcs(to +", "__stcs(const_cast<Word*>(from) +", dispatch, ReadOnly),
)  # fmt: skip

TERMS = bugs_of(
    "combine.cu",
    ("columns-beyond-the-last", "column < columns ? rows[column] : UINT32_MAX", "rows[column]",
     many_columns, (OutOfBounds, SharedRace)),
    ("row-past-the-last", "row < y_rows", "row <= y_rows", combine, OutOfBounds),
    ("dropped-not-skipped", "row < y_rows", "int(row) < int(y_rows)", combine, OutOfBounds),
    ("terms-one-too-far", "(1u << lane) - 1", "(2u << lane) - 1", combine, OutOfBounds),
    ("first-lanes-terms-alone", "count += __popc(all);", "count = __popc(all);", many_columns,
     WRONG),
    ("no-barrier-after-the-list", "__syncthreads();", "", combine, SharedRace),
    ("barrier-of-some-warps", "__syncthreads();", "if (threadIdx.x < kWarp) __syncthreads();",
     combine, SharedRace),
    ("terms-of-all-tokens", "(shared) + threadIdx.y * places", "(shared)", combine, SharedRace),
    ("row-in-elements", "hidden * static_cast<uint32_t>(sizeof(T))", "hidden + 0u", combine,
     (Misaligned, WRONG)),
    ("places-of-odd-tokens", "+ threadIdx.y * places", "+ threadIdx.y * columns", odd_columns,
     Misaligned),
)  # fmt: skip

ADDING = bugs_of(
    "combine.cu",
    ("two-terms-twice", "sums), terms += 2;", "sums);", combine, WRONG),
    ("odd-term-left", "if (left % 2)", "if (left < 0)", two_packs, WRONG),
    ("sums-in-bfloat16", "fmaf(weights[i], wide[c], sums[p][c]);",
     "__bfloat162float(__float2bfloat16(fmaf(weights[i], wide[c], sums[p][c])));", many_columns,
     WRONG),
    ("later-terms-first", "term = own.terms[i];", "term = own.terms[kRows - 1 - i];",
     floats, WRONG),
    ("packs-side-by-side", "values[i][p] = row[p * kWarp]", "values[i][p] = row[p]", packs, WRONG),
    ("slices-of-the-first", "(blockIdx.y * blockDim.x + threadIdx.x", "(threadIdx.x", slices,
     WRONG),
)  # fmt: skip

PACKS = bugs_of(
    "combine_pack.cuh",
    ("halves-swapped", '"=f"(out[i]) : "r"', '"=f"(out[i + 1]) : "r"', combine, WRONG),
    ("low-half-kept", "and.b32 %0, %1, 0xffff0000;", "mov.b32 %0, %1;", combine, WRONG),
)  # fmt: skip

BUGS = [*DISPATCH, *TERMS, *ADDING, *PACKS]


@each_probe(BUGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_right_without_a_bug(probe, seed):
    probe(seed)


@each(BUGS)
def test_a_bug_surfaces(bug):
    must_surface(bug)
