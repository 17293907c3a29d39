"""Barriers of the block, races without them, and threads that never arrive."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import (
    BadLaunch,
    BarrierDivergence,
    EmulationError,
    Hang,
    SharedRace,
    Trap,
    Unsupported,
)
from cuda_on_cpu.ptx_snippets import at, launch, module, zeros

SHARED = ".shared .align 4 .b8 buffer[1024];"
SEEDS = range(4)


def mirror(barrier, threads=128):
    """Each thread writes its word of the buffer and reads that of the mirrored thread."""
    return (
        at("g0", 4)
        + f"""
        mov.u32 t0, buffer; mad.lo.u32 t1, tid, 4, t0; mad.lo.u32 t2, tid, 10, 3;
        st.shared.u32 [t1], t2; {barrier}
        sub.u32 t3, {threads - 1}, tid; mad.lo.u32 t3, t3, 4, t0; ld.shared.u32 t4, [t3];
        st.global.u32 [x0], t4;"""
    )


@pytest.mark.parametrize(
    "barrier",
    [
        "bar.sync 0;",
        "barrier.sync 0;",
        "barrier.sync.aligned 3;",
        "bar.cta.sync 15, 128;",
        "mov.u32 t5, 5; mov.u32 t6, %ntid.x; barrier.sync t5, t6;",
        "setp.eq.u32 p0, tid, 0; bar.red.popc.u32 t5, 0, p0;",
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_order_the_warps(barrier, seed):
    out = zeros(128)
    launch(mirror(barrier), out, block=128, outside=SHARED, seed=seed)
    assert out.tolist() == [10 * (127 - i) + 3 for i in range(128)]


@pytest.mark.parametrize(
    "barrier", ["", "bar.warp.sync 0xffffffff;", "membar.cta;", "fence.sc.cta;"]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_barrier_it_is_a_race(barrier, seed):
    """Whichever order of the warps is drawn: a fence or a warp's barrier is not enough."""
    with pytest.raises(SharedRace):
        launch(mirror(barrier), zeros(128), block=128, outside=SHARED, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_overwriting_what_another_warp_may_still_read_is_a_race(seed):
    """A loop over tiles needs a second barrier before the next tile is written."""
    twice = mirror("bar.sync 0;") + "{} st.shared.u32 [t1], tid;"
    launch(twice.format("bar.sync 0;"), zeros(128), block=128, outside=SHARED, seed=seed)
    with pytest.raises(SharedRace):
        launch(twice.format(""), zeros(128), block=128, outside=SHARED, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_warps_that_write_one_word_race(seed):
    with pytest.raises(SharedRace):
        launch("mov.u32 t0, buffer; st.shared.u32 [t0], tid;", block=64, outside=SHARED, seed=seed)


def test_a_warp_orders_its_own_lanes():
    out = zeros(32)
    launch(mirror("bar.warp.sync 0xffffffff;", 32), out, outside=SHARED)
    assert out.tolist() == [10 * (31 - i) + 3 for i in range(32)]


def test_atomics_and_neighbouring_bytes_do_not_race():
    body = """
        mov.u32 t0, buffer; setp.eq.u32 p0, tid, 0; @p0 st.shared.u32 [t0+512], 0; bar.sync 0;
        atom.shared.add.u32 t1, [t0+512], 1; add.u32 t1, t0, tid; cvt.u16.u32 h0, tid;
        st.shared.u8 [t1], h0; bar.sync 0; ld.shared.u32 t2, [t0+512]; @p0 st.global.u32 [g0], t2;
    """
    out = zeros(1)
    launch(body, out, block=128, outside=SHARED)
    assert out.tolist() == [128]


@pytest.mark.parametrize("seed", SEEDS)
def test_barrier_reductions(seed):
    body = (
        at("g0", 16)
        + """
        and.b32 t0, tid, 3; setp.eq.u32 p0, t0, 2; setp.lt.u32 p1, tid, 500;
        setp.eq.u32 p2, tid, 77;
        bar.red.popc.u32 t1, 0, p0; bar.red.popc.u32 t2, 0, !p0;
        bar.red.and.pred p3, 1, p1; selp.u32 t3, 1, 0, p3; bar.red.and.pred p3, 1, p2;
        @p3 add.u32 t3, t3, 2; barrier.red.or.pred p3, 1, 96, p2; @p3 add.u32 t3, t3, 4;
        barrier.red.or.pred p3, 1, !p1; @p3 add.u32 t3, t3, 8; mov.u32 t4, 0;
        st.global.v4.u32 [x0], {t1, t2, t3, t4};
    """
    )
    out = zeros(96 * 4)
    launch(body, out, block=96, seed=seed)
    assert out.view(-1, 4).tolist() == [[24, 72, 5, 0]] * 96


@pytest.mark.parametrize("seed", SEEDS)
def test_a_producer_and_a_consumer_over_named_barriers(seed):
    """The producer fills one buffer eight times; barrier 1 is 'full', barrier 2 'empty'."""
    body = """
        and.b32 t0, tid, 31; mov.u32 t1, buffer; mad.lo.u32 t2, t0, 4, t1; mov.u32 t3, 0;
        mad.wide.u32 x0, t0, 4, g0;
        setp.ge.u32 p0, tid, 32; @p0 bra CONSUMER;
        PRODUCE: setp.eq.u32 p1, t3, 0; @p1 bra FILL; bar.sync 2, 64;
        FILL: mad.lo.u32 t4, t3, 100, t0; st.shared.u32 [t2], t4; bar.arrive 1, 64;
        add.u32 t3, t3, 1; setp.lt.u32 p1, t3, 8; @p1 bra PRODUCE; bra DONE;
        CONSUMER: xor.b32 t5, t0, 31; mad.lo.u32 t5, t5, 4, t1;
        CONSUME: bar.sync 1, 64; setp.eq.u32 p1, t3, 7; READ
        st.global.u32 [x0], t4; add.s64 x0, x0, 128; add.u32 t3, t3, 1;
        @!p1 bra CONSUME;
        DONE:
    """
    read, free = "ld.shared.u32 t4, [t5];", "@p1 bra LAST; bar.arrive 2, 64; LAST:"
    out = zeros(256)
    good = body.replace("READ", read + free)
    launch(good, out, block=64, outside=SHARED, seed=seed)
    assert out.tolist() == [100 * i + 31 - lane for i in range(8) for lane in range(32)]
    with pytest.raises(SharedRace):
        launch(body.replace("READ", free + read), out, block=64, outside=SHARED, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_of_warps_have_barriers_of_their_own(seed):
    """Two of four warps meet at barrier 1, the others at 2; neither waits for the other."""
    body = """
        shr.u32 t5, tid, 6; add.u32 t5, t5, 1; bar.sync t5, 64;
    """
    out = zeros(128)
    code = mirror(body).replace("sub.u32 t3, 127, tid", "xor.b32 t3, tid, 63")
    launch(code, out, block=128, outside=SHARED, seed=seed)
    assert out.tolist() == [10 * (i ^ 63) + 3 for i in range(128)]


def test_threads_that_exited_are_not_waited_for():
    out = zeros(64)
    launch(
        "setp.ge.u32 p0, tid, 64; @p0 exit;" + mirror("bar.sync 0;", 64),
        out,
        block=128,
        outside=SHARED,
    )
    assert out.tolist() == [10 * (63 - i) + 3 for i in range(64)]


NEVER = {
    "two barriers": "setp.lt.u32 p0, tid, 32; @p0 bra A; bar.sync 0; bra E; A: bar.sync 1; E:",
    "half a warp": """setp.lt.u32 p0, tid, 16; @p0 bra A; bar.sync 0; bra E;
        A: bar.warp.sync 0xffffffff; E:""",
    "too few": "bar.sync 1, 96;",
    "half an mma": """setp.lt.u32 p0, tid, 16; @p0 bra A; bar.sync 0; bra E;
        A: mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {f0, f1, f2, f3}, {t0, t1}, {t2},
        {f0, f1, f2, f3}; E:""",
    "a shuffle": """setp.lt.u32 p0, tid, 16; @p0 bra A; bar.sync 0; bra E;
        A: shfl.sync.idx.b32 t0, tid, 0, 31, 0xffffffff; E:""",
}


@pytest.mark.parametrize("name", NEVER)
def test_threads_that_wait_for_ever(name):
    with pytest.raises((Hang, BarrierDivergence)):
        launch(NEVER[name], block=64)


def test_a_trap_stops_the_kernel():
    launch("setp.eq.u32 p0, tid, 64; @p0 trap;", block=64)
    with pytest.raises(Trap):
        launch("setp.eq.u32 p0, tid, 63; @p0 trap;", block=64)


@pytest.mark.parametrize(
    ("grid", "block"), [(1, 1025), (1, 0), (0, 32), (1, (2, 2, 65)), ((1, 65536), 1)]
)
def test_impossible_launches(grid, block):
    with pytest.raises(BadLaunch):
        launch("", grid=grid, block=block)


def test_arguments_must_match_the_parameters():
    kernel = emulate(module("", 2))
    for arguments in ((zeros(),), (zeros(), zeros(), zeros())):
        with pytest.raises((EmulationError, TypeError)):
            kernel[1, 32](*arguments)


def test_too_much_dynamic_shared_memory():
    with pytest.raises(BadLaunch):
        launch("", shared=228 * 1024)


def test_an_unknown_instruction_is_named():
    with pytest.raises(Unsupported, match=r"frobnicate"):
        launch("frobnicate.b32 t0, tid;")


def test_the_first_entry_needs_a_name_among_several():
    two = module("st.global.u32 [g0], 1;").replace(".entry k", ".entry one")
    two += module("st.global.u32 [g0], 2;").replace(".entry k", ".entry two").split("64\n", 1)[1]
    out = torch.zeros(1, dtype=torch.int32)
    for value, name in ((1, "one"), (2, "two")):
        emulate(two, name)[1, 1](out)
        assert out.item() == value
    with pytest.raises((EmulationError, ValueError)):
        emulate(two)
