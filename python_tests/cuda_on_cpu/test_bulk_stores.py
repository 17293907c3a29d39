"""Bulk copies to global memory: fences before them, waits behind them, reductions."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu.async_snippets import (
    FENCE,
    FILL,
    FILLED,
    bulk,
    bulk_store,
    data,
    expect,
    run,
    start,
    wait,
    wait_stores,
)
from cuda_on_cpu.errors import (
    SharedRace,
)
from cuda_on_cpu.ptx_snippets import zeros

SEEDS = range(4)
STORE = bulk_store(512) + wait_stores(".read")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "order",
    [
        FENCE + "bar.sync 0;",
        "fence.proxy.async; bar.sync 0;",
        "bar.sync 0;" + FENCE,  # by the thread that starts the copy, behind the barrier
    ],
)
def test_a_store_writes_what_was_fenced(order, seed):
    out = zeros(128)
    run(start() + FILL + order + STORE, data(), out, seed=seed)
    assert torch.equal(out, FILLED)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("order", "text"),
    [
        ("bar.sync 0;", "no fence.proxy.async"),
        ("@p0 fence.proxy.async.shared::cta; bar.sync 0;", "no fence.proxy.async"),
        ("fence.proxy.async.global; bar.sync 0;", "no fence.proxy.async"),
        ("fence.acq_rel.cluster; bar.sync 0;", "no fence.proxy.async"),
        (FENCE, "no synchronisation"),
    ],
)
def test_a_store_of_what_was_not_fenced_is_a_race(order, text, seed):
    with pytest.raises(SharedRace, match=text):
        run(start() + FILL + order + STORE, data(), zeros(128), seed=seed)


def test_a_fence_comes_after_the_write():
    with pytest.raises(SharedRace, match=r"no fence.proxy.async"):
        run(start() + FENCE + FILL + "bar.sync 0;" + STORE, data(), zeros(128))


def test_within_one_warp_a_lane_fences_its_own_writes_only():
    body = start() + FILL + "@p0 fence.proxy.async.shared::cta; bar.warp.sync -1;"
    with pytest.raises(SharedRace, match=r"no fence.proxy.async"):
        run(body + bulk_store(128) + wait_stores(".read"), data(), zeros(128), block=32)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_thread_may_write_fence_and_store_alone(seed):
    out = zeros(128)
    one = "@p0 st.shared.v4.u32 [t6], {t3, t3, t3, t3};"
    body = start() + "mov.u32 t3, 9;" + one + "@p0 " + FENCE + bulk_store(16) + wait_stores(".read")
    run(body, data(), out, seed=seed)
    assert out[:5].tolist() == [9, 9, 9, 9, 0]
    with pytest.raises(SharedRace, match=r"no fence.proxy.async"):
        run(body.replace("@p0 " + FENCE, ""), data(), out, seed=seed)


def test_what_a_copy_brought_needs_no_fence():
    source, out = data(), zeros(128)
    run(start() + expect(512) + bulk(512) + wait() + STORE, source, out)
    assert torch.equal(out, source)


READY = start() + FILL + FENCE + "bar.sync 0;"
REWRITE = "bar.sync 0; @p0 st.shared.u32 [t6], 5;"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_source_may_be_rewritten_after_the_wait(seed):
    out = zeros(128)
    run(READY + bulk_store(512) + wait_stores(".read") + REWRITE, data(), out, seed=seed)
    assert torch.equal(out, FILLED)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "done", ["", "cp.async.bulk.commit_group;", wait_stores(".read", 1), "bar.warp.sync -1;"]
)
def test_rewriting_the_source_before_the_wait_is_a_race(done, seed):
    body = READY + bulk_store(512) + done + REWRITE + wait_stores()
    with pytest.raises(SharedRace, match="may still read"):
        run(body, data(), zeros(128), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_another_thread_may_not_rewrite_what_the_waiter_has_not_told_of(seed):
    body = READY + STORE + "setp.eq.u32 p1, tid, 64; @p1 st.shared.u32 [t6], 5;"
    with pytest.raises(SharedRace):
        run(body, data(), zeros(128), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_wait_itself_must_be_told_of(seed):
    """All know of the copy's begin, but not that its thread has waited."""
    body = READY + bulk_store(512) + "bar.sync 0;" + wait_stores(".read")
    rewrite = "setp.eq.u32 p1, tid, 64; @p1 st.shared.u32 [t6], 5;"
    run(body + "bar.sync 0;" + rewrite, data(), zeros(128), seed=seed)
    with pytest.raises(SharedRace):
        run(body + rewrite, data(), zeros(128), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("end", ["", "cp.async.bulk.commit_group;", wait_stores(".read", 1)])
def test_a_block_that_exits_before_its_copy_has_read(end, seed):
    with pytest.raises(SharedRace, match=r"exits while .* no wait_group.read"):
        run(READY + bulk_store(512) + end, data(), zeros(128), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_block_that_exits_before_a_copy_has_landed(seed):
    with pytest.raises(SharedRace, match="exits"):
        run(start() + expect(512) + bulk(512), data(), zeros(128), seed=seed)


BACK = "@p0 ld.global.u32 t2, [g1]; @p0 st.global.u32 [g2], t2;"


@pytest.mark.parametrize("seed", SEEDS)
def test_stored_bytes_are_in_memory_after_the_full_wait(seed):
    out, back = zeros(128), zeros(1)
    run(READY + bulk_store(512) + wait_stores() + BACK, data(), out, back, seed=seed)
    assert back.item() == 1


def test_one_tile_may_be_stored_many_times():
    """As kernels that fill memory do: none of the copies is waited for before the last."""
    out = zeros(128 * 300)
    many = """mov.u32 t0, 0; mov.u64 x4, g1;
        NEXT: """ + bulk_store(512, "x4") + """add.u64 x4, x4, 512; add.u32 t0, t0, 1;
        setp.lt.u32 p1, t0, 300; @p1 bra NEXT;"""  # fmt: skip
    run(READY + many + wait_stores(".read"), data(), out)
    assert torch.equal(out.view(300, 128), FILLED.expand(300, 128))


def test_a_wait_for_the_read_says_nothing_of_memory():
    out, back = zeros(128), zeros(1)
    # When the bytes appear is hardware's to choose; at seed 0 it is late.
    run(READY + STORE + BACK, data(), out, back, seed=0, on_gpu={2: False})
    assert back.item() == 0
    assert torch.equal(out, FILLED)  # in the end it is there


def test_the_youngest_groups_may_stay_under_way():
    out, back = zeros(128), zeros(2)
    each = "@p0 cp.async.bulk.global.shared::cta.bulk_group [g1+{0}], [t6+{0}], 256;"
    two = "cp.async.bulk.commit_group;".join([each.format(0), each.format(256), ""])
    look = "@p0 ld.global.u32 t2, [g1]; @p0 ld.global.u32 t3, [g1+256];"
    look += "@p0 st.global.v2.u32 [g2], {t2, t3}; cp.async.bulk.wait_group 0;"
    code = READY + two + "cp.async.bulk.wait_group 1;" + look
    run(code, data(), out, back, on_gpu={2: False})
    assert back.tolist() == [1, 0]
    assert torch.equal(out, FILLED)


REDUCTIONS = [
    ("add.u32", torch.int32, torch.add),
    ("add.s32", torch.int32, torch.add),
    ("add.u64", torch.int64, torch.add),
    ("min.s32", torch.int32, torch.minimum),
    ("max.s64", torch.int64, torch.maximum),
    ("and.b32", torch.int32, torch.bitwise_and),
    ("or.b64", torch.int64, torch.bitwise_or),
    ("xor.b32", torch.int32, torch.bitwise_xor),
    ("add.f32", torch.float32, torch.add),
    ("add.f64", torch.float64, torch.add),
    ("add.noftz.f16", torch.float16, torch.add),
    ("add.noftz.bf16", torch.bfloat16, torch.add),
    ("min.f16", torch.float16, torch.minimum),
    ("max.bf16", torch.bfloat16, torch.maximum),
]


@pytest.mark.parametrize(("operation", "dtype", "reference"), REDUCTIONS)
def test_reductions(operation, dtype, reference):
    g = torch.Generator().manual_seed(3)
    n = 512 // dtype.itemsize
    a, b = (torch.randint(-1000, 1000, (n,), generator=g) for _ in range(2))
    if dtype.is_floating_point:
        a, b = a / 16, b / 16
    a, b = a.to(dtype), b.to(dtype)
    want = reference(a, b)
    copy = f"@p0 cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation} [g1], [t6], 512;"
    body = start() + expect(512) + bulk(512) + wait() + copy + wait_stores()
    run(body, a, b)
    assert torch.equal(b, want)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_may_reduce_into_the_same_memory(seed):
    total = zeros(128)
    copy = "@p0 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [g1], [t6], 512;"
    run(READY + copy + wait_stores(".read"), data(), total, grid=5, seed=seed)
    assert torch.equal(total, 5 * FILLED)
