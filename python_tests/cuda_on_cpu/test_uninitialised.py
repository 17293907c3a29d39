"""Reads of what nobody has written, and the kinds of warnings."""

from __future__ import annotations

import pytest

from cuda_on_cpu import Empty
from cuda_on_cpu.ptx_snippets import at, launch, zeros

READS = {
    "ld": "ld.global.u32 t0, [x0];",
    "ld.v2": "and.b64 x0, x0, -8; ld.global.v2.u32 {t0, t1}, [x0];",
    "generic ld": "ld.u8 h0, [x0];",
    "volatile": "ld.volatile.global.u32 t0, [x0];",
    "atom": "atom.global.add.u32 t0, [x0], 1;",
    "red": "red.global.add.u32 [x0], 1;",
    "cp.async": "mov.u32 t0, buffer; mad.lo.u32 t0, tid, 4, t0; cp.async.ca.shared.global [t0],"
    " [x0], 4; cp.async.wait_all;",
}
BUFFER = ".shared .align 16 .b8 buffer[128];"


def kinds(report):
    return [warning.kind for warning in report.warnings]


@pytest.mark.parametrize("read", READS)
def test_a_read_before_any_write(read):
    report = launch(at("g0", 4) + READS[read], Empty(zeros()), outside=BUFFER)
    assert kinds(report) == ["uninitialised-global"]  # once, though 32 lanes do it
    (text,) = report.warnings
    assert text.startswith("uninitialised global read at offset 0")
    assert "block (0, 0, 0), thread (0, 0, 0), PTX line" in text


@pytest.mark.parametrize("read", READS)
def test_a_read_after_the_write(read):
    body = at("g0", 4) + "st.global.u32 [x0], tid; bar.sync 0;" + READS[read]
    assert launch(body, Empty(zeros()), outside=BUFFER).warnings == []
    assert launch(at("g0", 4) + READS[read], zeros(), outside=BUFFER).warnings == []


@pytest.mark.parametrize("byte", range(4))
def test_each_byte_counts(byte):
    body = "cvt.u16.u32 h0, tid; setp.eq.u32 p0, tid, 0; @!p0 bra END;"
    body += "st.global.u8 [g0], h0; st.global.u8 [g0+2], h0;"
    body += f"ld.global.u8 h1, [g0+{byte}]; END:"
    expected = ["uninitialised-global"] if byte % 2 else []
    assert kinds(launch(body, Empty(zeros(1)))) == expected


def test_one_launch_writes_what_another_reads():
    memory = Empty(zeros())
    write = at("g0", 4) + "st.global.u32 [x0], tid;"
    half = "setp.lt.u32 p0, tid, 16; @!p0 bra END;" + write + "END:"
    read = at("g0", 4) + "ld.global.u32 t0, [x0];"
    launch(half, memory)
    report = launch(read, memory)
    assert kinds(report) == ["uninitialised-global"]
    assert "offset 64" in report.warnings[0]
    launch(write, memory)
    assert launch(read, memory).warnings == []


def test_the_same_memory_by_two_names():
    memory = zeros()
    report = launch(at("g0", 4) + "ld.global.u32 t0, [x0];", memory, Empty(memory))
    assert kinds(report) == ["uninitialised-global"]


def test_kinds_of_other_warnings():
    shared = "mov.u32 t0, buffer; ld.shared.u32 t1, [t0];"
    assert kinds(launch(shared, zeros(), outside=BUFFER, on_gpu=False)) == ["uninitialised-shared"]
    atomic = "mov.u32 t0, buffer; atom.shared.add.u32 t1, [t0], 1;"
    assert kinds(launch(atomic, zeros(), outside=BUFFER)) == ["uninitialised-shared"]
    shuffle = "setp.lt.u32 p0, tid, 16; @!p0 bra END; activemask.b32 t1;"
    shuffle += "shfl.sync.idx.b32 t0, tid, 20, 31, 0xffff; END:"
    assert kinds(launch(shuffle, zeros())) == ["shuffle"]
