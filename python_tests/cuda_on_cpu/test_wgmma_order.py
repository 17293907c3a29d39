"""What must stand between a wgmma and everyone else who touches its registers and its operands."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import BarrierDivergence, RegisterRace, SharedRace
from cuda_on_cpu.ptx_snippets import module

D = "{d0, d1, d2, d3, d4, d5, d6, d7}"
E = "{e0, e1, e2, e3, e4, e5, e6, e7}"
FRAGMENTS = "{a0, a1, a2, a3}"
FENCE = "wgmma.fence.sync.aligned;"
COMMIT = "wgmma.commit_group.sync.aligned;"
ONES = 0x3C003C00


def mma(d=D, a="da", n=16, scale="1"):
    trans = "0" if a == FRAGMENTS else "0, 0"
    width = f"m64n{n}k16"
    return f"wgmma.mma_async.sync.aligned.{width}.f32.f16.f16 {d}, {a}, db, {scale}, 1, 1, {trans};"


def wait(left=0):
    return f"wgmma.wait_group.sync.aligned {left};"


def store(register="d0", pointer="g0"):
    return f"mad.wide.u32 x0, tid, 4, {pointer}; st.global.b32 [x0], {register};"


def kernel(*body):
    """All of A and B is 1, so that one wgmma adds 16; accumulators begin at 0."""
    registers = "\n".join(f"mov.b32 {r}{i}, 0;" for r in "de" for i in range(8))
    fragments = "\n".join(f"mov.b32 a{i}, {ONES};" for i in range(4))
    head = f"""
    .reg .b32 d<8>, e<8>, a<4>, at; .reg .b64 da, db; .shared .align 1024 .b8 s[8192];
    mov.u32 at, s;
    cvt.u64.u32 x0, at;
    shr.u64 x0, x0, 4;
    add.s64 da, x0, {128 >> 4 << 32 | 1024 >> 4 << 16};
    add.s64 db, da, {2048 >> 4};
    mad.lo.u32 at, tid, 16, at;
    mov.b32 t0, {ONES};
    {{ .reg .pred p; setp.lt.u32 p, tid, 128;
    @p st.shared.v4.b32 [at], {{t0, t0, t0, t0}};
    @p st.shared.v4.b32 [at+2048], {{t0, t0, t0, t0}}; }}
    fence.proxy.async;
    bar.sync 0;
    {registers}
    {fragments}"""
    return module(head + "\n".join(body), target="sm_90a")


def run(*body, threads=128, seed=0):
    out = torch.full((256,), -1.0)
    report = emulate(kernel(*body))[1, threads](out, seed=seed)
    return out[:threads], report


def fails(error, match, *body, threads=128):
    for seed in range(4):
        with pytest.raises(error, match=match):
            run(*body, threads=threads, seed=seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threads", [128, 256])
def test_groups_land_in_order(threads, seed):
    body = [FENCE, mma(), mma(), COMMIT, mma(E), COMMIT, wait(1), store()]
    out, report = run(*body, wait(), threads=threads, seed=seed)
    assert torch.equal(out, torch.full_like(out, 32.0))
    assert report.warnings == []


def test_what_is_not_committed_is_not_waited_for():
    fails(RegisterRace, "wgmma.wait_group is missing", FENCE, mma(), wait(), store())


def test_wait_group_off_by_one():
    body = [FENCE, mma(), COMMIT, mma(E), COMMIT]
    fails(RegisterRace, "accumulates in this register", *body, wait(1), store("e0"))
    out, _ = run(*body, wait(1), store("d0"), wait())
    assert torch.equal(out, torch.full_like(out, 16.0))


@pytest.mark.parametrize(
    "access",
    [
        store(),
        "add.f32 f0, d3, d3;",
        "mov.b32 d7, 0;",
        "ld.global.b32 d0, [g0];",
        "shfl.sync.bfly.b32 t1, d2, 1, 31, -1;",
        "setp.eq.f32 p0, d1, 0f00000000;",
        "cvt.rn.f16x2.f32 t1, d0, d1;",
        "mov.b64 x1, {d0, d1};",
        "{ .reg .pred r; setp.eq.u32 r, tid, 77; @r mov.b32 d0, 0; }",
    ],
)
def test_accumulators_before_the_wait(access):
    fails(RegisterRace, "wgmma.wait_group is missing", FENCE, mma(), COMMIT, access, wait())
    run(FENCE, mma(), COMMIT, wait(), access)


def test_an_access_that_is_not_executed_does_not_count():
    skipped = "{ .reg .pred r; setp.eq.u32 r, tid, 999; @r mov.b32 d0, 0; }"
    run(FENCE, mma(), COMMIT, skipped, wait())


def test_fragments_may_be_read_but_not_changed():
    start = [FENCE, mma(a=FRAGMENTS), COMMIT]
    match = "multiplies this register"
    fails(RegisterRace, match, *start, "mov.b32 a1, 5;", wait())
    fails(RegisterRace, match, *start, "add.s32 a2, a2, tid;", wait())
    out, _ = run(*start, "add.s32 t0, a0, 1;", wait(), "mov.b32 a1, 5;", store())
    assert torch.equal(out, torch.full_like(out, 16.0))


def test_a_from_accumulators_under_way():
    moved = mma(E, a="{d0, d1, d2, d3}").replace("db, 1, 1, 1, 0, 0", "db, 1, 1, 1, 0")
    fails(RegisterRace, "A is in accumulators", FENCE, mma(), moved, COMMIT, wait())
    back = mma("{a0, a1, a2, a3, d4, d5, d6, d7}")
    fails(RegisterRace, "are the A of", FENCE, mma(E, a=FRAGMENTS), back, COMMIT, wait())


def test_no_fence():
    fails(RegisterRace, "no wgmma.fence before it", mma(), COMMIT, wait())
    once = [FENCE, mma(), COMMIT, wait()]
    fails(RegisterRace, "after the last wgmma.fence", *once, "add.f32 d0, d0, d0;", mma())
    fails(RegisterRace, "after the last wgmma.fence", *once, store("d4"), mma())
    changed = [FENCE, "add.s32 a0, a0, 0;", mma(a=FRAGMENTS)]
    fails(RegisterRace, "after the last wgmma.fence", *changed)
    out, _ = run(*once, "add.f32 d0, d0, d0;", FENCE, mma(), COMMIT, wait(), store())
    assert torch.equal(out, torch.full_like(out, 48.0))


def test_a_fence_is_needed_between_shapes():
    wide = mma("{d0, d1, d2, d3, d4, d5, d6, d7, e0, e1, e2, e3}", n=24)
    fails(RegisterRace, "N of 16", FENCE, mma(), wide, COMMIT, wait())
    run(FENCE, mma(), FENCE, wide, COMMIT, wait())
    run(FENCE, mma(), mma(E), mma(), COMMIT, wait())


def test_constants_behind_the_fence_pass_as_nvcc_emits_them():
    out, report = run(FENCE, "mov.f32 d0, 0f40000000;", mma(), COMMIT, wait(), store())
    assert torch.equal(out, torch.full_like(out, 18.0))
    assert report.warnings == []
    fails(RegisterRace, "last wgmma.fence", FENCE, "add.s32 t5, tid, 1; mov.b32 d0, t5;", mma())


def test_a_moved_accumulator_lands_at_once_with_a_warning():
    out, report = run(FENCE, mma(), COMMIT, "mov.b32 e0, d0;", wait(), store("e0"))
    assert torch.equal(out, torch.full_like(out, 16.0))
    assert len(report.warnings) == 1
    assert "ptxas makes the wgmma wait" in report.warnings[0]


@pytest.mark.parametrize("refill", ["[at+2048]", "[at]"])
def test_operands_refilled_before_the_wait(refill):
    body = [f"st.shared.v4.b32 {refill}, {{t0, t0, t0, t0}};"]
    some = ["{ .reg .pred r; setp.lt.u32 r, tid, 32; @!r bra SKIP; ", *body, "SKIP: }"]
    fails(SharedRace, "which a wgmma under way reads", FENCE, mma(), COMMIT, *some, wait())
    fails(SharedRace, "under way reads", FENCE, mma(), COMMIT, wait(1), *some, wait())
    run(FENCE, mma(), COMMIT, wait(), *some)


REFILL = "st.shared.b32 [s+2048], t0;"
TWO_GROUPS = ["setp.ge.u32 p0, tid, 128;", "@p0 bra OTHER;", FENCE, mma(), COMMIT]


def test_another_warpgroup_refills_without_being_told():
    body = [*TWO_GROUPS, wait(), "bra DONE;", "OTHER:", REFILL, "DONE:"]
    fails(SharedRace, "a wgmma|after a write", *body, threads=256)
    told_early = [
        *TWO_GROUPS,
        "bar.arrive 1, 256;",
        wait(),
        "bra DONE;",
        "OTHER:",
        "bar.sync 1, 256;",
    ]
    fails(SharedRace, "a wgmma", *told_early, REFILL, "DONE:", threads=256)


@pytest.mark.parametrize("seed", range(4))
def test_one_warp_that_saw_it_land_may_tell_for_all(seed):
    """As CUTLASS does it: one arrival for each warpgroup frees a buffer."""
    tell = ["setp.lt.u32 p1, tid, 96;", "@p1 bra DONE;", "bar.arrive 1, 160;", "bra DONE;"]
    body = [*TWO_GROUPS, wait(), *tell, "OTHER:", "bar.sync 1, 160;", REFILL, "DONE:"]
    run(*body, threads=256, seed=seed)


def test_a_buffer_is_read_anew_after_a_refill():
    zero = ["mov.b32 t0, 0;", "bar.sync 0;", "st.shared.v4.b32 [at], {t0, t0, t0, t0};"]
    first, again = [FENCE, mma(), COMMIT, wait()], [FENCE, mma(), COMMIT, wait(), store()]
    out, _ = run(*first, *zero, "fence.proxy.async;", "bar.sync 0;", *again)
    assert torch.equal(out, torch.full_like(out, 16.0))


def test_a_warp_that_stays_away():
    away = "setp.ge.u32 p0, tid, 96;\n@p0 bra AWAY;"
    group = [FENCE, mma(), COMMIT, wait()]
    match = "waits for the other warps of its warpgroup"
    fails(BarrierDivergence, match, away, *group, "AWAY:", "bar.sync 0;")
    fails(BarrierDivergence, match, away, *group, "AWAY:")


def test_warps_at_different_instructions():
    split = "setp.ge.u32 p0, tid, 96;\n@p0 bra OTHER;"
    rest = [mma(), COMMIT, wait()]
    body = [FENCE, split, *rest, "bra DONE;", "OTHER:", *rest, "DONE:"]
    fails(BarrierDivergence, "warp . of the same warpgroup at", *body)


def test_half_a_warpgroup():
    fails(BarrierDivergence, "no whole warpgroup", FENCE, threads=64)


def test_divergence_within_a_warp():
    body = ["setp.eq.u32 p0, tid, 5;", "@p0 bra OUT;", FENCE, "OUT:"]
    fails(BarrierDivergence, "have exited|waits for", *body)
