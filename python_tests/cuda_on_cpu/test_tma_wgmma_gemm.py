"""Tensor copies, mbarriers, wgmma and setmaxnreg together in one kernel; and bugs planted in it."""

from __future__ import annotations

import shutil

import pytest
import torch

from cuda_on_cpu import gemm_kernels as gk
from cuda_on_cpu.errors import EmulationError, Hang, Invalid, RegisterRace, SharedRace

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")

SEEDS = range(4)
WRONG = "wrong result"


def is_right(c, want):
    return torch.allclose(c.float(), want, rtol=2**-8, atol=1e-4)


@pytest.fixture(scope="module")
def ptx():
    return gk.compiled(gk.SOURCE.read_text())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(256, 128, 256), (gk.M, gk.N, gk.K), (1, 8, 8)], ids=str)
def test_gemm(shape, seed, ptx):
    """Whole tiles; tiles whose rows, columns and depth end early; and less than one tile."""
    c, want, report = gk.run(ptx, seed, shape=shape)
    assert is_right(c, want)
    assert report.warnings == []
    blocks, tiles = -(-shape[0] // 128) * -(-shape[1] // 64), -(-shape[2] // 64)
    assert report.counts["tensor_flops"] == blocks * tiles * 2 * 128 * 64 * 64


EXPECTED_BYTES = "&s.full[k], kStageBytes)"
WAIT_EMPTY = "wait(&s.empty[k], (turn & 1) ^ 1);"
WAIT_FULL = "wait(&s.full[k], turn & 1);"
WAIT_1 = 'asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");'
WAIT_0 = 'asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");'
WGMMA_FENCE = 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");'
ARRIVE = "if (t > 0 && first_lane) ptx::mbarrier_arrive(&s.empty[(t - 1) % kStages]);"
INIT_EMPTY = "ptx::mbarrier_init(&s.empty[k], kWarps)"
BARRIER = 'asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");'

# Of each: what is replaced by what, and what the seeds may find.
BUGS = {
    "too_few_bytes": (EXPECTED_BYTES, "&s.full[k], kStageBytes / 2)", (SharedRace, Hang, Invalid)),
    "too_many_bytes": (EXPECTED_BYTES, "&s.full[k], kStageBytes + 16)", Hang),
    "full_parity": (WAIT_FULL, "wait(&s.full[k], (turn & 1) ^ 1);", SharedRace),
    "empty_parity": (WAIT_EMPTY, "wait(&s.empty[k], turn & 1);", Hang),
    "no_wait_before_refill": (WAIT_EMPTY, "", (SharedRace, Invalid)),
    "freed_by_one_warp": (INIT_EMPTY, "ptx::mbarrier_init(&s.empty[k], 1)", (SharedRace, Hang)),
    "freed_by_one_warpgroup": (INIT_EMPTY, "ptx::mbarrier_init(&s.empty[k], 4)", SharedRace),
    "freed_by_every_thread": ("t > 0 && first_lane", "t > 0", (SharedRace, Hang)),
    "freed_by_one_thread_only": ("t > 0 && first_lane", "t > 0 && threadIdx.x == 128", Hang),
    "freed_before_the_wait": (WAIT_1 + "\n    " + ARRIVE, ARRIVE + WAIT_1, SharedRace),
    "freed_the_wrong_one": ("&s.empty[(t - 1) %", "&s.empty[t %", (SharedRace, Hang)),
    "no_wait_before_freeing": (WAIT_1, "", SharedRace),
    "no_final_wait": (WAIT_0, "", RegisterRace),
    "no_wgmma_fence": (WGMMA_FENCE, "", RegisterRace),
    "descriptor_swizzle": ("swizzle_128 = 1", "swizzle_128 = 2", WRONG),
    "descriptor_stride": ("stride = 1024 >> 4", "stride = 512 >> 4", WRONG),
    "step_along_k": ("a + 2 * i, b + 2 * i", "a + i, b + i", (WRONG, Invalid)),
    "rows_of_the_other_group": ("descriptor(s.a[k][64 * group])", "descriptor(s.a[k])", WRONG),
    "tile_of_another_block": (
        "{t * kK, static_cast<int>(blockIdx.x) * kM}",
        "{t * kK, static_cast<int>(blockIdx.y) * kM}",
        WRONG,
    ),
    "no_proxy_fence": ("ptx::fence_proxy_async(ptx::space_shared);", "", SharedRace),
    "no_barrier_before_the_store": (BARRIER, "", SharedRace),
    "barriers_not_initialised": ("__syncthreads();  // the barriers", "//", (SharedRace, Invalid)),
    "too_many_registers": ("aligned.u32 232", "aligned.u32 240", Hang),
    "registers_not_given": ('asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");', "", Hang),
}  # fmt: skip


def found(ptx, seed, **options):
    try:
        c, want, _ = gk.run(ptx, seed, **options)
    except EmulationError as error:
        return type(error)
    return None if is_right(c, want) else WRONG


@pytest.fixture(scope="module")
def mutants():
    sources = [gk.changed(old, new, name) for name, (old, new, _) in BUGS.items()]
    return gk.compiled(gk.translation_unit(sources))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs(name, mutants):
    may = BUGS[name][2]
    shown = [found(mutants, seed, name=name) for seed in SEEDS]
    assert set(shown) <= {*(may if isinstance(may, tuple) else (may,)), None}, shown
    assert shown.count(None) <= 1, shown


WRONG_MAPS = {
    "half_a_box_of_a": (gk.Maps(box_a=(64, 64)), Hang),
    "box_of_b_too_tall": (gk.Maps(box_b=(128, 64)), (SharedRace, Hang, Invalid)),
    "narrow_boxes": (gk.Maps(box_a=(128, 32), box_b=(64, 32)), Hang),
    "another_swizzle": (gk.Maps(box_a=(256, 32), box_b=(128, 32), swizzle=64), WRONG),
    "no_swizzle": (gk.Maps(swizzle=0), WRONG),
    "rows_of_c_missing": (gk.Maps(box_c=(32, 64)), WRONG),
    "too_many_rows_of_c": (gk.Maps(box_c=(128, 64)), (SharedRace, WRONG, Invalid)),
}


@pytest.mark.parametrize("name", WRONG_MAPS)
def test_wrong_maps(name, ptx):
    maps, may = WRONG_MAPS[name]
    shown = [found(ptx, seed, maps=maps) for seed in SEEDS]
    assert set(shown) <= {*(may if isinstance(may, tuple) else (may,)), None}, shown
    assert shown.count(None) <= 1, shown
