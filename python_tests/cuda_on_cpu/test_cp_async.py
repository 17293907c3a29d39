"""Asynchronous copies land late: nothing may rely on them before the wait."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const
from cuda_on_cpu.errors import Misaligned, OutOfBounds, SharedRace
from cuda_on_cpu.ptx_snippets import at, launch, zeros

OUTSIDE = ".shared .align 16 .b8 buffer[2048];"
COPY = "cp.async.ca.shared.global [t0], [x0], 4;"


def data(n=128):
    return torch.arange(1000, 1000 + n, dtype=torch.int32)


def kernel(size, *code):
    """``t0`` and ``x0``: the thread's ``size`` bytes of the buffer, filled with 7, and of g0."""
    clear = "".join(f"st.shared.u32 [t0+{i}], 7;" for i in range(0, size, 4))
    start = f"mov.u32 t0, buffer; mad.lo.u32 t0, tid, {size}, t0;" + at("g0", size)
    return "\n".join([start, clear, at("g1", size, "x1"), *code])


def give(size, offset=0):
    """Stores the thread's bytes of the buffer to g1."""
    words = range(0, size, 4)
    return "".join(
        f"ld.shared.u32 t1, [t0+{i}]; st.global.u32 [x1+{offset + i}], t1;" for i in words
    )


@pytest.mark.parametrize(
    ("copy", "size"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16), ("cg.L2::128B", 16)]
)
@pytest.mark.parametrize(
    "wait", ["cp.async.commit_group; cp.async.wait_group 0;", "cp.async.wait_all;"]
)
def test_copies_are_there_after_the_wait(copy, size, wait):
    cache, _, hint = copy.partition(".")
    name = f"cp.async.{cache}.shared.global{'.' + hint if hint else ''}"
    source, out = data(8 * size), zeros(8 * size)
    launch(
        kernel(size, f"{name} [t0], [x0], {size};", wait, give(size)), source, out, outside=OUTSIDE
    )
    assert torch.equal(out, source)


@pytest.mark.parametrize(
    "between",
    [
        "",
        "cp.async.commit_group;",
        "cp.async.commit_group; cp.async.wait_group 1;",
        "bar.sync 0;",
        "cp.async.wait_group 0;",  # what was not committed is in no group
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_copies_are_not_there_before_the_wait(between, seed):
    """The read is refused as a race or sees the old bytes, never the new."""
    source, out = data(32), zeros(32)
    body = kernel(4, COPY, between, give(4), "cp.async.wait_all;")
    try:
        launch(body, source, out, outside=OUTSIDE, seed=seed)
    except SharedRace:
        return
    assert out.tolist() == [7] * 32


def test_wait_group_leaves_the_youngest_groups_pending():
    """Three groups; after wait_group 1 the first two are there."""
    source, out = data(128), zeros(128)
    copies = "".join(
        f"cp.async.ca.shared.global [t0+{i}], [x0+{i}], 4; cp.async.commit_group;"
        for i in (0, 4, 8)
    )
    read = "ld.shared.u32 t1, [t0]; ld.shared.u32 t2, [t0+4]; st.global.v2.u32 [x1], {t1, t2};"
    end = "cp.async.wait_group 0; ld.shared.u32 t1, [t0+8]; st.global.u32 [x1+8], t1;"
    launch(kernel(16, copies, "cp.async.wait_group 1;", read, end), source, out, outside=OUTSIDE)
    want = source.clone()
    want[3::4] = 0
    assert torch.equal(out, want)


def test_an_empty_group_counts():
    """What a pipelined loop's tail commits: the older copies have then landed."""
    source, out = data(32), zeros(32)
    body = kernel(4, COPY, "cp.async.commit_group; cp.async.commit_group;")
    body += "cp.async.wait_group 1;" + give(4)
    launch(body, source, out, outside=OUTSIDE)
    assert torch.equal(out, source)


@pytest.mark.parametrize("kept", [0, 4, 8, 12, 16])
def test_zero_fill(kept):
    source, out = data(), zeros(128)
    copy = f"mov.u32 t2, {kept}; cp.async.cg.shared.global [t0], [x0], 16, t2; cp.async.wait_all;"
    launch(kernel(16, copy, give(16)), source, out, outside=OUTSIDE)
    want = source.clone().view(-1, 4)
    want[:, kept // 4 :] = 0
    assert torch.equal(out, want.view(-1))


def test_bytes_that_are_not_read_may_lie_outside():
    source, out = data(124), zeros(128)
    copy = "setp.eq.u32 p0, tid, 31; selp.u32 t2, 0, 16, p0;"
    copy += "cp.async.cg.shared.global [t0], [x0], 16, t2; cp.async.wait_all;"
    launch(kernel(16, copy, give(16)), source, out, outside=OUTSIDE)
    assert torch.equal(out, torch.cat([source, zeros(4)]))
    with pytest.raises(OutOfBounds):
        launch(kernel(16, copy.replace("0, 16, p0", "16, 16, p0")), source, out, outside=OUTSIDE)


def test_a_source_may_be_read_only():
    source, out = data(128), zeros(128)
    body = kernel(16, "cp.async.cg.shared.global [t0], [x0], 16; cp.async.wait_all;", give(16))
    launch(body, Const(source), out, outside=OUTSIDE)
    assert torch.equal(out, source)


@pytest.mark.parametrize("where", ["[t0+4], [x0]", "[t0], [x0+4]"])
def test_misaligned(where):
    with pytest.raises(Misaligned):
        launch(
            kernel(16, f"cp.async.ca.shared.global {where}, 8; cp.async.wait_all;"),
            data(256),
            zeros(128),
            outside=OUTSIDE,
        )


def test_destination_out_of_bounds():
    with pytest.raises(OutOfBounds):
        launch(
            kernel(4, "cp.async.ca.shared.global [t0+1924], [x0], 4; cp.async.wait_all;"),
            data(),
            zeros(128),
            outside=OUTSIDE,
        )


EXCHANGE = "xor.b32 t3, tid, 63; shl.b32 t3, t3, 2; mov.u32 t0, buffer; add.u32 t0, t0, t3;"


def test_other_warps_see_copies_after_the_barrier():
    source, out = data(64), zeros(64)
    body = kernel(4, COPY, "cp.async.wait_all; bar.sync 0;", EXCHANGE, give(4))
    for seed in range(3):
        launch(body, source, out, block=64, outside=OUTSIDE, seed=seed)
        assert torch.equal(out, source.flip(0))


@pytest.mark.parametrize("order", ["cp.async.wait_all;", "bar.sync 0; cp.async.wait_all;"])
def test_waiting_alone_does_not_show_copies_to_other_warps(order):
    """One's own wait says nothing about the copies of another warp."""
    source, out = data(64), zeros(64)
    with pytest.raises(SharedRace):
        launch(kernel(4, COPY, order, EXCHANGE, give(4)), source, out, block=64, outside=OUTSIDE)


def test_overwriting_a_pending_copy_is_a_race():
    """A write of the buffer while the copy is in flight: either may win."""
    body = kernel(4, COPY, "st.shared.u32 [t0], tid; cp.async.wait_all;", give(4))
    with pytest.raises(SharedRace):
        launch(body, data(32), zeros(32), outside=OUTSIDE)
