"""Orders of modifiers that the manual does not show, ptxas takes, and CUB and CUTLASS use."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu.ptx_snippets import at, launch, zeros


@pytest.mark.parametrize("opcode", ["vote.sync.ballot.b32", "vote.ballot.sync.b32"])
def test_ballot(opcode):
    out = zeros()
    odd = "and.b32 t0, tid, 1; setp.eq.u32 p0, t0, 1;"
    launch(f"{odd} {opcode} t1, p0, 0xffffffff; {at('g0', 4)} st.global.u32 [x0], t1;", out)
    assert out.eq(0xAAAAAAAA - 2**32).all()


@pytest.mark.parametrize(
    ("modifiers", "largest"),
    [
        (".satfinite.s32.s8.s8.s32", 2**31 - 1),
        (".s32.s8.s8.s32.satfinite", 2**31 - 1),
        (".s32.s8.s8.s32", 2**31 - 1 + 16 * 100 - 2**32),
    ],
)
def test_a_product_that_saturates(modifiers, largest):
    """16 products of 10 and 10 on top of the largest number."""
    out = zeros(dtype=torch.int32)
    tens, top = "mov.u32 t0, 0x0a0a0a0a;", "mov.u32 t1, 0x7fffffff;"
    mma = f"mma.sync.aligned.m16n8k16.row.col{modifiers} {{t2, t3, t4, t5}}, {{t0, t0}}, {{t0}},"
    store = at("g0", 4) + "st.global.u32 [x0], t2;"
    launch(f"{tens} {top} {mma} {{t1, t1, t1, t1}}; {store}", out)
    assert out.eq(largest).all()
