"""Counts against numbers worked out by hand, and their table."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const, emulate
from cuda_on_cpu.counts import counts_table

KERNEL = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 from, .param .u64 to, .param .u32 stride)
{
    .shared .align 4 .b8 buffer[4096];
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [from];
    ld.param.u64 %rd2, [to];
    ld.param.u32 %r1, [stride];
    mov.u32 %r2, %tid.x;
    mul.lo.u32 %r3, %r2, %r1;
    mul.wide.u32 %rd3, %r3, 4;
    add.u64 %rd4, %rd1, %rd3;
    ld.global.u32 %r4, [%rd4];
    mov.u32 %r5, buffer;
    shl.b32 %r6, %r3, 2;
    add.u32 %r5, %r5, %r6;
    st.shared.u32 [%r5], %r4;
    bar.sync 0;
    add.u64 %rd5, %rd2, %rd3;
    st.global.u32 [%rd5], %r4;
    ret;
}
"""


# Of 32 lanes that read four bytes every `stride` words: sectors of 32 bytes, lanes per bank.
@pytest.mark.parametrize(
    ("stride", "sectors", "wavefronts"),
    [(1, 4, 1), (2, 8, 2), (8, 32, 8), (32, 32, 32)],
)
def test_sectors_and_bank_conflicts(stride, sectors, wavefronts):
    source = torch.arange(32 * stride, dtype=torch.int32)
    target = torch.full_like(source, -1)
    counts = emulate(KERNEL)[1, 32](Const(source), target, stride).counts
    assert torch.equal(target[::stride], source[::stride])
    assert counts["global_load_requests"] == counts["global_store_requests"] == 1
    assert counts["global_load_sectors"] == counts["global_store_sectors"] == sectors
    assert counts["global_load_bytes"] == 128
    assert counts["shared_requests"] == 1
    assert counts["shared_wavefronts"] == wavefronts
    assert counts["barriers"] == 1
    assert counts["warp_instructions"] == 16
    assert counts["thread_instructions"] == 16 * 32


def test_the_table_has_every_count():
    x = torch.zeros(64, dtype=torch.int32)
    reports = {"narrow": emulate(KERNEL)[1, 32](x, x.clone(), 1)}
    reports["wide"] = emulate(KERNEL)[1, 32](x, x.clone(), 2)
    text = counts_table(reports)
    for words in ("narrow", "wide", "sectors per global load", "8.00", "tensor_flops"):
        assert words in text
