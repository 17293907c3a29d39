"""Pairs of shared accesses by two warps: ordered by a barrier they pass, without one they race."""

from __future__ import annotations

import itertools

import pytest
import torch

from cuda_on_cpu.errors import SharedRace
from cuda_on_cpu.ptx_snippets import launch, zeros

SHARED = ".shared .align 16 .b8 buffer[512];"
# each touches bytes 16 to 31 of the buffer, in t0, by one lane or by all of a warp
WRITES = {
    "st": "@p1 st.shared.u32 [t0+16], t1;",
    "st.b8": "@p1 st.shared.b8 [t0+19], h0;",
    "st.v4": "@p1 st.shared.v4.u32 [t0+16], {t1, t1, t1, t1};",
    "generic st": "@p1 st.u64 [x0+16], x1;",
    "atom": "@p1 atom.shared.add.u32 t2, [t0+16], 1;",
    "red": "@p1 red.shared.max.u32 [t0+16], 9;",
    "cp.async": "@p1 cp.async.ca.shared.global [t0+16], [g0], 16; cp.async.wait_all;",
}
READS = {
    "ld": "@p1 ld.shared.u32 t3, [t0+16];",
    "ld.v2": "@p1 ld.shared.v2.u64 {x2, x3}, [t0+16];",
    "generic ld": "@p1 ld.u16 h1, [x0+18];",
    "ldmatrix": "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {t3}, [t4];",
}
SETUP = """
    mov.u32 t0, buffer; cvt.u64.u32 x0, t0; cvta.shared.u64 x0, x0; mov.u32 t1, tid;
    cvt.u16.u32 h0, tid; cvt.u64.u32 x1, tid; and.b32 t5, tid, 31; mad.lo.u32 t4, t5, 16, t0;
    st.shared.u64 [t4], 0; st.shared.u64 [t4+8], 0;
    setp.eq.u32 p1, t5, 7; setp.lt.u32 p0, tid, 32;
"""


def pair(first, second, between):
    """Warp 0 clears the buffer and does the first access, warp 1 the second."""
    clear = SETUP.replace("st.shared", "@p0 st.shared").replace("setp.lt.u32 p0, tid, 32;", "")
    return f"""
        setp.lt.u32 p0, tid, 32; {clear} bar.sync 0;
        @!p0 bra SECOND; {first} {between} bra DONE;
        SECOND: {between} {second}
        DONE:"""


CONFLICTS = [
    *itertools.product(WRITES.items(), READS.items()),
    *itertools.product(READS.items(), WRITES.items()),
    *((a, b) for a in WRITES.items() for b in WRITES.items()),
]


def conflict(first, second):
    """Two atomic operations order themselves; all others overlap in byte 19."""
    return not {first, second} <= {"atom", "red"}


@pytest.mark.parametrize(
    ("first", "second"), CONFLICTS, ids=[f"{a[0]}-{b[0]}" for a, b in CONFLICTS]
)
def test_pair(first, second):
    data = torch.arange(4, dtype=torch.int32)
    for seed in (0, 5):
        launch(pair(first[1], second[1], "bar.sync 1;"), data, block=64, outside=SHARED, seed=seed)
        racy = pair(first[1], second[1], "")
        if conflict(first[0], second[0]):
            with pytest.raises(SharedRace):
                launch(racy, data, block=64, outside=SHARED, seed=seed)
        else:
            launch(racy, data, block=64, outside=SHARED, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_reads_do_not_race(seed):
    for first, second in itertools.product(READS.values(), READS.values()):
        launch(pair(first, second, ""), zeros(4), block=64, outside=SHARED, seed=seed)


@pytest.mark.parametrize("byte", range(4))
def test_each_byte_of_a_word_has_its_history(byte):
    """One thread writes three bytes; another may read the fourth, and no other."""
    body = pair(
        "@p1 st.shared.b8 [t0], h0; @p1 st.shared.b8 [t0+1], h0; @p1 st.shared.b8 [t0+2], h0;",
        f"@p1 ld.shared.u8 h1, [t0+{byte}];",
        "",
    )
    if byte == 3:
        launch(body, zeros(4), block=64, outside=SHARED)
    else:
        with pytest.raises(SharedRace):
            launch(body, zeros(4), block=64, outside=SHARED)


def test_lanes_of_one_store_may_agree_on_a_value():
    out = zeros(1)
    body = "mov.u32 t0, buffer; st.shared.u32 [t0], 5; bar.sync 0; ld.shared.u32 t1, [t0];"
    launch(body + "st.global.u32 [g0], t1;", out, outside=SHARED)
    assert out.item() == 5
    with pytest.raises(SharedRace):
        launch(body.replace("[t0], 5", "[t0], tid"), out, outside=SHARED)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_have_shared_memory_of_their_own(seed):
    out = zeros(8 * 32)
    body = """
        mov.u32 t0, buffer; mov.u32 t1, %ctaid.x; mad.lo.u32 t2, t1, 32, tid;
        mad.lo.u32 t3, tid, 4, t0; st.shared.u32 [t3], t2; bar.sync 0;
        xor.b32 t4, tid, 31; mad.lo.u32 t4, t4, 4, t0; ld.shared.u32 t5, [t4];
        mad.wide.u32 x0, t2, 4, g0; st.global.u32 [x0], t5;
    """
    launch(body, out, grid=8, outside=SHARED, seed=seed)
    assert out.tolist() == [32 * b + 31 - i for b in range(8) for i in range(32)]


FLAGS = {
    "release": ("st.release.cta.shared.u32 [t0], 1;", "ld.acquire.cta.shared.u32 t1, [t0];"),
    "fence": (
        "membar.cta; st.volatile.shared.u32 [t0], 1;",
        "ld.volatile.shared.u32 t1, [t0]; membar.cta;",
    ),
    "atomic": (
        "atom.release.cta.shared.exch.b32 t3, [t0], 1;",
        "atom.acquire.cta.shared.cas.b32 t1, [t0], 2, 2;",
    ),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_orders_two_warps_if_released_and_acquired(seed, name):
    """Warp 1 waits for a flag of warp 0 and then reads its data."""
    publish, acquire = FLAGS[name]
    body = f"""
        mov.u32 t0, buffer; setp.eq.u32 p1, tid, 0; @p1 st.shared.u32 [t0], 0; bar.sync 0;
        setp.eq.u32 p0, tid, 32; @p0 bra CONSUMER; setp.ne.u32 p0, tid, 0; @p0 bra DONE;
        st.shared.u32 [t0+4], 77; {publish} bra DONE;
        CONSUMER: {acquire} setp.eq.u32 p2, t1, 0; @p2 bra CONSUMER;
        ld.shared.u32 t2, [t0+4]; st.global.u32 [g0], t2;
        DONE:
    """
    out = zeros(1)
    launch(body, out, block=64, outside=SHARED, seed=seed)
    assert out.item() == 77
