"""wgmma.mma_async: every shape, type and modifier, against products in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import Unsupported
from cuda_on_cpu.wgmma_reference import DTYPES, bits, expected, make_case, multiply

NARROW = [("f32", "f16", "f16"), ("f16", "f16", "f16"), ("f32", "bf16", "bf16")]
FLOAT8 = [(d, a, b) for d in ("f32", "f16") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")]
INTEGERS = [("s32", a, b) for a in ("s8", "u8") for b in ("s8", "u8")]
TYPES = [*NARROW, ("f32", "tf32", "tf32"), *FLOAT8, *INTEGERS]


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_every_width(n):
    case = make_case(n, NARROW[n // 8 % 3], seed=n)
    assert torch.equal(multiply(case), expected(case))


@pytest.mark.parametrize("n", [8, 16, 24, *range(32, 257, 16)])
def test_every_width_of_integers(n):
    case = make_case(n, INTEGERS[n // 8 % 4], seed=n)
    assert torch.equal(multiply(case), expected(case))


@pytest.mark.parametrize("from_registers", [False, True])
@pytest.mark.parametrize("types", TYPES, ids=".".join)
def test_every_type(types, from_registers):
    case = make_case(24, types, from_registers=from_registers, seed=3)
    assert torch.equal(multiply(case), expected(case))


@pytest.mark.parametrize("types", [NARROW[0], FLOAT8[1], ("f32", "tf32", "tf32")], ids=".".join)
@pytest.mark.parametrize("negate", [(1, -1), (-1, 1), (-1, -1)])
def test_operands_may_be_negated(types, negate):
    case = make_case(16, types, negate=negate)
    assert torch.equal(multiply(case), expected(case))


@pytest.mark.parametrize("types", [NARROW[0], NARROW[1], INTEGERS[0]], ids=".".join)
def test_scale_d_of_zero_does_not_read_the_accumulators(types):
    case = make_case(16, types, scale="0")
    if types[0] != "s32":
        case.before = bits(torch.full((64, 16), float("nan")).to(DTYPES[types[0]]))
    assert torch.equal(multiply(case), expected(case))


@pytest.mark.parametrize("option", ["", ".satfinite"])
def test_integers_wrap_or_saturate(option):
    case = make_case(16, ("s32", "u8", "s8"), option=option)
    case.left[:] = 255
    case.right[:8], case.right[8:] = 127, 128
    case.before[:, :8], case.before[:, 8:] = 2**31 - 5, -(2**31) + 5
    got = multiply(case)
    assert torch.equal(got, expected(case))
    assert (got[0, 0] == 2**31 - 1) == bool(option)
    assert (got[0, 8] == -(2**31)) == bool(option)


def test_f16_sums_are_rounded_once():
    case = make_case(8, ("f16", "f16", "f16"))
    case.left[:], case.right[:] = 0, 0
    case.left[:, 0], case.right[:, 0] = 0x3C00, 0x1000  # 1 and 2^-11: half an ulp of 1
    case.left[:, 1], case.right[:, 1] = 0x3C00, 0x0001  # and a little
    case.before[:] = 0x3C00
    assert torch.equal(multiply(case), torch.full((64, 8), 1 + 2.0**-10).half())


def test_float8_infinities_and_nan():
    case = make_case(8, ("f32", "e4m3", "e5m2"), scale="0")
    case.left[:] = 0x38  # 1
    case.right[:] = 0
    case.right[0, 0], case.right[1, 0], case.right[2, 0] = 0x7C, 0x7D, 0x7B
    case.left[5, 0] = 0x7F
    got = multiply(case)
    assert got[0, 0] == float("inf")
    assert torch.isnan(got[0, 1])
    assert got[0, 2] == 57344
    assert torch.isnan(got[5]).all()


def swap(ptx, old, new):
    assert old in ptx
    return ptx.replace(old, new)


@pytest.mark.parametrize(
    ("types", "old", "new"),
    [
        (NARROW[0], "m64n16k16", "m64n12k16"),
        (NARROW[0], "m64n16k16", "m64n264k16"),
        (NARROW[0], "m64n16k16", "m64n16k32"),
        (NARROW[0], "m64n16k16", "m64n24k16"),
        (NARROW[0], ".f32.f16.f16", ".f32.f16.bf16"),
        (NARROW[2], ".f32.bf16.bf16", ".f16.bf16.bf16"),
        (NARROW[0], "q, 1, 1, 0, 0;", "q, 1, 2, 0, 0;"),
        (NARROW[0], "q, 1, 1, 0, 0;", "q, 1, 1, 0;"),
        (NARROW[0], "mma_async.sync.aligned", "mma_async.sp.sync.aligned"),
        (NARROW[0], "mma_async.sync.aligned", "mma_async"),
        (NARROW[0], "{d0, d1,", "{d0,"),
        (NARROW[0], ".target sm_90a", ".target sm_90"),
        (NARROW[0], ", q, 1", ", true, 1"),
        (("f32", "tf32", "tf32"), "q, 1, 1;", "q, 1, 1, 0, 1;"),
        (INTEGERS[0], ".s32.s8.s8", ".s32.b1.b1.and.popc"),
        (FLOAT8[0], "m64n16k32", "m64n16k32.satfinite"),
    ],
)
def test_what_ptx_does_not_have_is_refused(types, old, new):
    ptx = swap(make_case(16, types).ptx(), old, new)
    with pytest.raises(Unsupported):
        emulate(ptx)


@pytest.mark.parametrize("n", [40, 56, 72, 248])
def test_integers_have_fewer_widths(n):
    with pytest.raises(Unsupported, match=f"N of {n}"):
        emulate(make_case(n, INTEGERS[0]).ptx())


@pytest.mark.parametrize(("scale", "operand"), [("0", "0"), ("1", "1"), ("1", "!q"), ("0", "!q")])
def test_scale_d_may_be_a_literal_or_negated(scale, operand):
    case = make_case(16, NARROW[0], scale=scale)
    ptx = swap(case.ptx(), ", q, 1", f", {operand}, 1")
    if operand == "!q":
        case.scale = "0" if scale == "1" else "1"
    assert torch.equal(multiply(case, ptx=ptx), expected(case))


def test_tf32_ignores_the_low_bits():
    case = make_case(8, ("f32", "tf32", "tf32"))
    want = expected(case)
    case.left, case.right = case.left | 0x1FFF, case.right | 0x1FFF
    assert np.count_nonzero(case.left & 0x1FFF)
    assert torch.equal(multiply(case), want)
