"""Accesses that must stop the emulation, each beside its correct twin."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const
from cuda_on_cpu.errors import EmulationError, Misaligned, OutOfBounds, ReadOnly
from cuda_on_cpu.ptx_snippets import at, launch, zeros


def test_null_pointer():
    """None is the null pointer: it can be compared, not read."""
    out = zeros(2)
    compare = "setp.eq.u64 p0, g0, 0; selp.u32 t0, 1, 0, p0; st.global.u32 [g1], t0;"
    launch(compare, None, out, block=1)
    assert out.tolist() == [1, 0]
    launch(compare, zeros(), out, block=1)
    assert out.tolist() == [0, 0]
    for code in ("ld.global.u32 t0, [g0];", "st.global.u32 [g0], tid;"):
        with pytest.raises(EmulationError):
            launch(code, None)


@pytest.mark.parametrize("code", ["ld.global.u32 t0, [x0];", "st.global.u32 [x0], tid;"])
def test_out_of_bounds_by_one_element(code):
    launch(at("g0", 4) + code, zeros(32))
    with pytest.raises(OutOfBounds):
        launch(at("g0", 4) + code, zeros(31))
    with pytest.raises(OutOfBounds):
        launch(at("g0", 4) + "sub.s64 x0, x0, 4;" + code, zeros(33))


def test_a_vector_that_ends_outside_is_out_of_bounds():
    body = at("g0", 16) + "ld.global.v4.u32 {t0, t1, t2, t3}, [x0];"
    launch(body, zeros(128))
    with pytest.raises(OutOfBounds):
        launch(body, zeros(127))


def test_an_inactive_lane_may_have_a_bad_address():
    launch("setp.lt.u32 p0, tid, 3;" + at("g0", 4) + "@p0 st.global.u32 [x0], tid;", zeros(3))


@pytest.mark.parametrize(
    ("code", "size"),
    [
        ("ld.global.u32 t0, [x0];", 4),
        ("ld.global.u16 h0, [x0];", 2),
        ("ld.global.v2.u32 {t0, t1}, [x0];", 8),
        ("ld.global.v4.u32 {t0, t1, t2, t3}, [x0];", 16),
        ("st.global.u64 [x0], g0;", 8),
        ("st.global.v2.b64 [x0], {g0, g0};", 16),
        ("atom.global.add.u32 t0, [x0], 1;", 4),
    ],
)
def test_misaligned(code, size):
    """Half of the access's width off, which an element's own alignment may well allow."""
    # A pointer that is stored is another one on a GPU.
    aligned = f"add.s64 x0, g0, {size};" + code
    launch(aligned, zeros(64), block=1, on_gpu="g0" not in code)
    with pytest.raises(Misaligned):
        launch(f"add.s64 x0, g0, {size // 2};" + code, zeros(64), block=1)


SHARED = ".shared .align 16 .b8 buffer[128];"
DYNAMIC = ".extern .shared .align 16 .b8 dynamic[];"


@pytest.mark.parametrize("code", ["ld.shared.u32 t1, [t0];", "st.shared.u32 [t0], tid;"])
@pytest.mark.parametrize(
    ("name", "outside", "size"), [("buffer", SHARED, 0), ("dynamic", DYNAMIC, 128)]
)
def test_shared_out_of_bounds_by_one_element(code, name, outside, size):
    address = f"mov.u32 t0, {name}; mad.lo.u32 t0, tid, 4, t0;"
    launch(address + code, outside=outside, shared=size)
    with pytest.raises(OutOfBounds):
        launch(address + code, outside=outside, shared=size, block=33)


def test_shared_misaligned():
    with pytest.raises(Misaligned):
        launch("mov.u32 t0, buffer; st.shared.u64 [t0+4], x0;", outside=SHARED, block=1)


def test_reading_shared_memory_that_nobody_wrote_is_warned_of():
    read = "mov.u32 t0, buffer; ld.shared.u32 t1, [t0+64];"
    report = launch(read, outside=SHARED, block=1)
    assert report.warnings
    write = "mov.u32 t0, buffer; st.shared.u32 [t0+64], tid;"
    assert not launch(write + read, outside=SHARED, block=1).warnings


@pytest.mark.parametrize("code", ["st.global.u32 [x0], tid;", "red.global.add.u32 [x0], 1;"])
def test_const_arguments_cannot_be_written(code):
    data = torch.arange(1, 33, dtype=torch.int32)
    with pytest.raises(ReadOnly):
        launch(at("g0", 4) + code, Const(data))
    assert data.tolist() == list(range(1, 33))
    out = zeros()
    body = at("g0", 4) + at("g1", 4, "x1") + "ld.global.nc.u32 t0, [x0]; st.global.u32 [x1], t0;"
    launch(body, Const(data), out)
    assert torch.equal(out, data)
