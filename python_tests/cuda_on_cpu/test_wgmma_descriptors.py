"""Matrix descriptors: every swizzle, either major, strides that are not the densest; bad ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cuda_on_cpu.errors import Invalid, OutOfBounds, SharedRace
from cuda_on_cpu.wgmma_reference import expected, make_case, multiply

F16 = ("f32", "f16", "f16")
SWIZZLES = [0, 32, 64, 128]


def right(*args, **options):
    case = make_case(*args, **options)
    assert torch.equal(multiply(case), expected(case))


@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_a(swizzle, mn_major):
    right(16, F16, {"swizzle": swizzle, "mn_major": mn_major})


@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("n", [64, 192])
def test_b(n, swizzle, mn_major):
    right(n, F16, {}, {"start": 2048, "swizzle": swizzle, "mn_major": mn_major})


@pytest.mark.parametrize("n", [8, 40, 104])
def test_narrow_b_without_swizzle_along_n(n):
    right(n, F16, {}, {"start": 2048, "mn_major": True})


@pytest.mark.parametrize("kind", ["tf32", "e4m3", "s8"])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_other_sizes_of_elements(kind, swizzle):
    types = ("s32" if kind == "s8" else "f32", kind, kind)
    right(32, types, {"swizzle": swizzle}, {"start": 8192, "swizzle": swizzle})


@pytest.mark.parametrize("swizzle", [64, 128])
@pytest.mark.parametrize("inner", [1, 2, 3])
def test_the_start_moves_within_a_swizzled_row(swizzle, inner):
    if inner * 32 < swizzle:
        tile = {"swizzle": swizzle, "inner": inner}
        right(24, F16, tile, {**tile, "start": 8192})


@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_strides(swizzle, mn_major):
    """Both far apart; K-major swizzled rows have no use for the leading one."""
    far = {"leading": 16384, "stride": 2048} if mn_major else {"leading": 512, "stride": 3072}
    if swizzle and not mn_major:
        far["leading"] = 48
    right(64, F16, {}, {"start": 2048, "swizzle": swizzle, "mn_major": mn_major, **far})


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_the_swizzle_is_of_the_address_not_of_the_offset(swizzle):
    """A start in the middle of the pattern, as for the rows from 2 on of a larger tile."""
    right(16, F16, {}, {"start": 4096 + 2 * swizzle, "swizzle": swizzle})


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("base", [1, 3, 6])
@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_base_offset(swizzle, base, shift):
    """Read off an H100: the pattern moves by so many rows of 128 bytes, wherever the start is."""
    tile = {"start": 4096 + 128 * base * shift, "swizzle": swizzle, "base_offset": base}
    right(16, F16, {}, tile)
    if base % (swizzle // 16):
        case = make_case(16, F16, {}, tile)
        got = multiply(case, ptx=without_base_offset(case), defined=False)
        assert not torch.equal(got, expected(case))


def without_base_offset(case):
    d = case.b.descriptor()
    return swapped(case, d, d & ~(7 << 49))


def swapped(case, old, new):
    ptx = case.ptx()
    assert ptx.count(str(old)) == 1
    return ptx.replace(str(old), str(new))


def test_reserved_bits_are_refused():
    case = make_case(16, F16)
    d = case.b.descriptor()
    for bit in (14, 30, 46, 52, 61):
        with pytest.raises(Invalid, match="reserved bits"):
            multiply(case, ptx=swapped(case, d, d | 1 << bit))
    with pytest.raises(Invalid, match="base offset"):
        multiply(case, ptx=swapped(case, d, d | 1 << 49))


def test_an_operand_outside_shared_memory():
    case = make_case(16, F16)
    d = case.b.descriptor()
    with pytest.raises(OutOfBounds, match="shared read of 16 bytes"):
        multiply(case, ptx=swapped(case, d, d + 4096 // 16))
    with pytest.raises(OutOfBounds):
        multiply(case, ptx=swapped(case, d, d | 0x3FFF << 32))


def test_descriptors_that_differ_between_threads():
    case = make_case(16, F16)
    d = case.b.descriptor()
    lane = f"add.s64 db, start, {d};"
    for register in ("%laneid", "%warpid"):
        other = f"{{ .reg .b32 l; mov.u32 l, {register}; cvt.u64.u32 db, l; add.s64 db, db, {d}; }}"
        with pytest.raises(Invalid, match="different descriptors of B"):
            multiply(case, ptx=case.ptx().replace(lane, other))


def test_operands_that_another_warp_writes_without_a_barrier():
    case = make_case(16, F16)
    with pytest.raises(SharedRace, match="with no synchronisation between"):
        multiply(case, ptx=swapped(case, "bar.sync 0;", ""))


WRONG = [
    {"swizzle": 64}, {"leading": 16}, {"stride": 64}, {"mn_major": True}, {"start": 2064},
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG, ids=lambda c: next(iter(c)))
def test_a_wrong_descriptor_gives_wrong_results(change):
    right_tile = {"start": 2048, "swizzle": 0}
    case = make_case(64, F16, {}, right_tile)
    wrong = make_case(64, F16, {}, right_tile | change)
    memory = np.concatenate([case.arguments()[0], np.zeros(8192, np.uint8)])
    case.b = wrong.b
    case.arguments = lambda: [memory, *type(case).arguments(wrong)[1:]]
    assert not torch.equal(multiply(case, defined=False), expected(case))
