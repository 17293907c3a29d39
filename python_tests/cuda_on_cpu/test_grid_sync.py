"""Cooperative launches, spinning on global memory, and what one launch alone does not need."""

from __future__ import annotations

import pytest

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import BadLaunch, Hang, Trap, Unsupported
from cuda_on_cpu.ptx_snippets import module, zeros

SEEDS = range(4)
# Every block but the last waits for a flag that the last one sets.
SPIN = """
    mov.u32 t0, %ctaid.x; mov.u32 t1, %nctaid.x; sub.u32 t1, t1, 1; setp.eq.u32 p1, t0, t1;
    @p1 bra SET;
    LOOP: {sleep} ld.acquire.gpu.u32 t2, [g0]; setp.eq.u32 p2, t2, 0; @p2 bra LOOP;
    bra DONE;
    SET: st.release.gpu.u32 [g0], 1;
    DONE:"""


def run(body, *tensors, grid, target="sm_90a", **options):
    kernel = emulate(module(body, len(tensors), target=target))
    return kernel[grid, 32](*tensors, max_steps=500_000, **options)


@pytest.mark.parametrize("sleep", ["", "nanosleep.u32 100;"])
@pytest.mark.parametrize("seed", SEEDS)
def test_all_blocks_of_a_cooperative_launch_are_resident(sleep, seed):
    """Forty blocks, of which an ordinary launch has sixteen in flight; spinning costs little."""
    flag = zeros(1)
    report = run(SPIN.format(sleep=sleep), flag, grid=40, seed=seed, cooperative=True)
    assert flag.item() == 1
    assert report.counts["warp_instructions"] < 20_000


def test_an_ordinary_launch_of_it_hangs():
    with pytest.raises(Hang, match="still running"):
        run(SPIN.format(sleep=""), zeros(1), grid=40)


WORKSPACE = """
    mov.u32 t0, %envreg1; mov.u32 t1, %envreg2; or.b32 t2, t0, t1; setp.eq.u32 p1, t2, 0;
    @p1 trap; cvt.u64.u32 x0, t1; cvt.u64.u32 x1, t0; shl.b64 x1, x1, 32; or.b64 x0, x0, x1;
    atom.global.add.u32 t3, [x0], 1; atom.global.max.u32 t3, [g0], t3;"""


def test_the_grids_workspace_is_there_and_zero():
    most = zeros(1)
    run(WORKSPACE, most, grid=3, cooperative=True)
    assert most.item() == 3 * 32 - 1
    with pytest.raises(Trap):
        run(WORKSPACE, most, grid=3)


@pytest.mark.parametrize(
    ("target", "block", "shared", "fits"),
    [
        ("sm_90a", 1024, 0, 132 * 2),
        ("sm_80", 1024, 0, 108 * 2),
        ("sm_90a", 33, 0, 132 * 32),  # 64 threads: as many blocks as there may be
        ("sm_90a", 96, 0, 132 * 21),
        ("sm_90a", 32, 100_000, 132 * 2),
        ("sm_80", 32, 100_000, 108),
        ("sm_90a", 32, 227 * 1024, 132),
    ],
)
def test_a_cooperative_launch_must_fit(target, block, shared, fits):
    from cuda_on_cpu.limits import check_cooperative

    check_cooperative(target, (fits, 1, 1), (block, 1, 1), shared)
    with pytest.raises(BadLaunch, match=f"{fits + 1} blocks"):
        check_cooperative(target, (fits + 1, 1, 1), (block, 1, 1), shared)


def test_a_cooperative_launch_that_does_not_fit_is_refused():
    with pytest.raises(BadLaunch, match="cooperative"):
        run("", zeros(1), grid=132 * 32 + 1, cooperative=True)
    with pytest.raises(Unsupported, match="sm_120"):
        run("", zeros(1), grid=1, target="sm_120", cooperative=True)


def test_dependent_launches_and_fences_do_nothing():
    body = """griddepcontrol.wait; fence.mbarrier_init.release.cluster;
        fence.proxy.tensormap::generic.acquire.gpu [g0], 128;
        fence.proxy.tensormap::generic.release.sys; griddepcontrol.launch_dependents;
        st.global.u32 [g0], 4;"""
    out = zeros(32)
    run(body, out, grid=1)
    assert out[0].item() == 4


@pytest.mark.parametrize(
    "code",
    [
        "fence.mbarrier_init.acquire.cluster;",
        "fence.proxy.async.release.gpu;",
        "fence.async;",
        "griddepcontrol.nothing;",
        "fence.proxy.tensormap.acquire.gpu [g0], 128;",
    ],
)
def test_other_forms_are_refused(code):
    with pytest.raises(Unsupported, match="PTX line"):
        emulate(module(code, target="sm_90a"))
