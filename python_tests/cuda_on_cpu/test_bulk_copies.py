"""Bulk copies: what lands and when, what they refuse, and who may touch their bytes meanwhile."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const, emulate
from cuda_on_cpu.async_snippets import (
    FENCE,
    FILL,
    GIVE,
    SHARED,
    bulk,
    bulk_store,
    data,
    expect,
    run,
    start,
    wait,
)
from cuda_on_cpu.errors import (
    Hang,
    Invalid,
    Misaligned,
    OutOfBounds,
    ReadOnly,
    SharedRace,
    Unsupported,
)
from cuda_on_cpu.ptx_snippets import module, zeros

SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("order", ["expect first", "copy first"])
def test_a_load_is_there_after_the_wait(order, seed):
    source, out = data(), zeros(128)
    both = [expect(512), bulk(512)]
    body = start() + "".join(both if order == "expect first" else both[::-1]) + wait() + GIVE
    report = run(body, Const(source), out, seed=seed)
    assert torch.equal(out, source)
    assert report.warnings == []
    assert (report.counts["bulk_copies"], report.counts["bulk_bytes"]) == (1, 512)


@pytest.mark.parametrize("seed", SEEDS)
def test_several_copies_of_one_phase(seed):
    source, out = data(), zeros(128)
    parts = "".join(
        f"@p0 add.u64 x4, g0, {at_}; @p0 add.u32 t5, t6, {at_};" + bulk(size, "t5", "x4")
        for at_, size in [(0, 16), (16, 240), (256, 256)]
    )
    run(start() + expect(512) + parts + wait() + GIVE, source, out, seed=seed)
    assert torch.equal(out, source)


TWO = start(1, 2) + expect(512) + expect(512, "t7+8") + "@p0 add.u32 t5, t6, 512;"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "between",
    [
        "",
        "bar.sync 0;",
        wait(1),
        "@!p0 bra OTHERS;" + wait() + "OTHERS:",
        wait(at="t7+8"),  # of another copy
    ],
    ids=["nothing", "barrier", "wrong-parity", "one-thread", "other-barrier"],
)
def test_touching_the_target_before_the_wait_is_a_race(between, seed):
    body = TWO + bulk(512) + bulk(512, "t5", at="t7+8") + between + GIVE
    with pytest.raises(SharedRace, match=r"not been waited for|after a read"):
        run(body + wait() + wait(at="t7+8"), data(), zeros(128), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_thread_may_wait_for_all_before_a_barrier(seed):
    source, out = data(), zeros(128)
    one = "@!p0 bra OTHERS;" + wait() + "OTHERS: bar.sync 0;"
    run(start() + expect(512) + bulk(512) + one + GIVE, source, out, seed=seed)
    assert torch.equal(out, source)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lane_waits_for_itself_only(seed):
    source, out = data(), zeros(128)
    one = "@!p0 bra OTHERS;" + wait() + "OTHERS:"
    body = start() + expect(128) + bulk(128) + one + "bar.warp.sync -1;" + GIVE
    run(body, source, out, block=32, seed=seed)
    assert torch.equal(out[:32], source[:32])
    with pytest.raises(SharedRace):
        run(body.replace("bar.warp.sync -1;", ""), source, out, block=32, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_refilling_what_others_still_read_is_a_race(seed):
    again = "bar.sync 0;" + expect(512) + bulk(512) + wait(1)
    body = start() + expect(512) + bulk(512) + wait() + GIVE
    run(body + again, data(), zeros(128), seed=seed)
    with pytest.raises(SharedRace, match=r"after a read|waited for"):
        run(body + again.replace("bar.sync 0;", ""), data(), zeros(128), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_comes_after_the_reads_that_its_thread_knows_of(seed):
    """Thread 0 waits until all have read and refills the tile; thread 32 expects the bytes.

    Who has waited for the copy may write where others have read before it.
    """
    body = start(1) + "@p0 mbarrier.init.shared.b64 [t7+16], 128; bar.sync 0;"
    body += expect(512) + bulk(512) + wait() + GIVE
    told = "mbarrier.arrive.shared.b64 _, [t7+16];"
    refill = "@!p0 bra OTHERS;" + wait(at="t7+16") + bulk(512, guard="") + "OTHERS:"
    expects = "setp.eq.u32 p1, tid, 32;" + expect(512, guard="@p1 ")
    write = "xor.b32 t3, tid, 127; mad.lo.u32 t3, t3, 4, t6; st.shared.u32 [t3], tid;"
    run(body + told + refill + expects + wait(1) + write, data(), zeros(128), seed=seed)
    with pytest.raises(SharedRace):
        run(body + told + expects + write, data(), zeros(128), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_lands_though_others_spin(seed):
    """The second warp looks at a flag that the first one sets when it has waited."""
    body = start() + "mov.u32 t3, 0; setp.lt.u32 p1, tid, 32; @p1 bra FIRST;"
    body += "SPIN: ld.volatile.shared.u32 t3, [t6+512]; setp.eq.u32 p2, t3, 0; @p2 bra SPIN;"
    body += "bra DONE; FIRST:" + expect(512) + bulk(512) + wait()
    body += "@p0 st.volatile.shared.u32 [t6+512], 1; DONE:"
    body = body.replace("bar.sync 0;", "@p0 st.shared.u32 [t6+512], 0; bar.sync 0;", 1)
    run(body, data(), block=64, seed=seed)


@pytest.mark.parametrize(
    ("size", "wanted", "text"),
    [(512, 496, "-16 bytes"), (512, 528, "16 bytes"), (496, 512, "16 bytes")],
)
def test_a_wrong_byte_count_hangs(size, wanted, text):
    with pytest.raises(Hang, match=f"0 arrivals and {text} are missing"):
        run(start() + expect(wanted) + bulk(size) + wait(), data(), zeros(128))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (bulk(24), Misaligned),
        ("add.u32 t5, t6, 8;" + bulk(16, "t5"), Misaligned),
        ("add.u64 x4, g0, 8;" + bulk(16, source="x4"), Misaligned),
        (bulk(16, at="t7+4"), Misaligned),
        (bulk(528), OutOfBounds),
        ("add.u32 t5, t6, 32768;" + bulk(512, "t5"), OutOfBounds),
        (bulk(16, at="t7+8"), Invalid),
        (bulk_store(24), Misaligned),
        (bulk_store(16, source="t6+8"), Misaligned),
        (bulk_store(528), OutOfBounds),
        (bulk_store(16, to="g0"), ReadOnly),
        (bulk(512) + bulk(512), SharedRace),
    ],
)
def test_what_a_copy_refuses(code, error):
    clear = FILL + FENCE + "@p0 st.shared.u32 [t6+512], tid;" + "bar.sync 0;" + FENCE
    with pytest.raises(error):
        run(start() + clear + expect(2048) + code + wait(), Const(data()), zeros(128))


def test_prefetches_are_counted_and_checked():
    body = start() + "@p0 cp.async.bulk.prefetch.L2.global [g0], {};"
    assert run(body.format(512), data()).counts["prefetches"] == 1
    with pytest.raises(OutOfBounds):
        run(body.format(528), data())
    with pytest.raises(Misaligned):
        run(body.format(8), data())


@pytest.mark.parametrize(
    "code",
    [
        "cp.async.bulk.shared::cluster.global.bulk_group [t6], [g0], 16;",
        "cp.async.bulk.shared::cta.shared::cta.mbarrier::complete_tx::bytes [t6], [t6], 16, [t7];",
        "cp.async.bulk.global.shared::cta.bulk_group.cp_mask [g0], [t6], 16, h0;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.inc.u32 [g0], [t6], 16;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16 [g0], [t6], 16;",
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 "
        "[t6], [t6], 16, [t7];",
        "cp.async.bulk.wait_group.shared::cta 0;",
        "st.async.shared::cluster.u32 [t6], t0, [t7];",
        "ld.async.shared::cta.u32 t0, [t6];",
    ],
)
def test_other_forms_are_refused(code):
    with pytest.raises(Unsupported, match="PTX line"):
        emulate(module(code, outside=SHARED, target="sm_90a"))
