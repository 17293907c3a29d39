"""Kernels for sm_90 that nvcc compiles, as they are and with bugs planted that must surface."""

from __future__ import annotations

import functools

import pytest
import torch

from cuda_on_cpu import async_kernels as ak
from cuda_on_cpu.errors import (
    EmulationError,
    GlobalRace,
    Hang,
    Invalid,
    OutOfBounds,
    SharedRace,
)

SEEDS = range(4)
WRONG = "wrong result"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("toolkit", [False, True])
@pytest.mark.parametrize("kernel", ak.SOURCES, ids=lambda f: f.__name__)
def test_kernels_are_right_and_silent(kernel, toolkit, seed):
    got, want, report = kernel(ak.compiled(ak.SOURCES[kernel], toolkit=toolkit), seed)
    assert torch.equal(got, want)
    assert report.warnings == []


EXPECT = "ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, "
NAMED = 'asm volatile("bar.sync 1, 128;" ::: "memory");  // '
EMPTY = "while (!ptx::mbarrier_try_wait_parity(&empty[k], (turn & 1) ^ 1))"
COMPUTE = """for (int i = thread; i < kRows * kColumns; i += kConsumers) {
      (&s.out[0][0])[i] = 3 * (&s.in[k][0][0])[i] + 1;
    }
    """
ARRIVE = "ptx::mbarrier_arrive(&empty[k]);"
WAITED = "cuda::device::experimental::cp_async_bulk_wait_group_read<0>();"
FENCED = "cuda::device::experimental::fence_proxy_async_shared_cta();\n  __syncthreads"

# What is replaced by what, and what four seeds show: the error of every seed is among these.
RING = {
    "no-expect-tx": (
        EXPECT + "&full[k], kTileBytes)",
        "ptx::mbarrier_arrive(&full[k])",
        SharedRace,
    ),
    "too-many-bytes": ("&full[k], kTileBytes)", "&full[k], 2 * kTileBytes)", Hang),
    "too-few-bytes": ("&full[k], kTileBytes)", "&full[k], kTileBytes / 2)", Hang),
    "full-parity": ("&full[k], turn & 1)", "&full[k], (turn & 1) ^ 1)", SharedRace),
    "empty-parity": ("&empty[k], (turn & 1) ^ 1)", "&empty[k], turn & 1)", Hang),
    "refilled-early": (EMPTY, "while (false)", (SharedRace, Invalid)),
    "no-fence": ("ptx::fence_proxy_async(ptx::space_shared);", "", SharedRace),
    "no-barrier-before-store": (NAMED + "all have written", "", SharedRace),
    "no-barrier-after-store": (NAMED + "for everybody", "", SharedRace),
    "no-wait-read": ("ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());", "", SharedRace),
    "one-arrival-short": ("&empty[k], kConsumers)", "&empty[k], kConsumers + 1)", Hang),
    "no-sync-after-init": ("__syncthreads();  // the", "// the", (SharedRace, Invalid)),
    "arrives-before-reading": (COMPUTE + ARRIVE, ARRIVE + COMPUTE, SharedRace),
    "wrong-stage": ("&x, at, &full[k])", "&x, at, &full[(k + 1) % kStages])", (SharedRace, Hang)),
    "misplaced-tile": ("{column, t * kRows};", "{t * kRows, column};", WRONG),
}
OTHERS = {
    "bulk-no-fence": (ak.add_one, FENCED, "__syncthreads", SharedRace),
    "bulk-no-wait": (ak.add_one, "bar.wait(std::move(token));", "", SharedRace),
    "bulk-no-wait-read": (ak.add_one, WAITED, "", SharedRace),
    "copy-no-wait": (ak.reverse, "bar.arrive_and_wait();", "(void)bar.arrive();", SharedRace),
    "parts-not-zero": (ak.spread_bins, "cluster.sync();  // all parts", "//", SharedRace),
    "parts-incomplete": (
        ak.spread_bins,
        "cluster.sync();  // all have counted",
        "//",
        (SharedRace, OutOfBounds),
    ),
    "peer-not-initialised": (
        ak.shared_tiles,
        "cluster.sync();  // the barriers",
        "__syncthreads(); //",
        (SharedRace, Invalid),
    ),
    "peer-exits": (ak.shared_tiles, "cluster.sync();  // nobody", "//", (SharedRace, OutOfBounds)),
    "own-arrivals-only": (ak.shared_tiles, "if (thread < 2)", "if (thread == rank)", Hang),
    "half-of-the-bytes": (ak.shared_tiles, "[k], 1024)", "[k], 512)", (SharedRace, Hang)),
    "not-read-by-all": (ak.shared_tiles, "__syncthreads();  // the block", "//", SharedRace),
    "totals-missing": (ak.grid_scan, "grid.sync();", "__syncthreads();", GlobalRace),
}
MISUSE = {
    "wrong-swizzle": functools.partial(ak.tile_ring, swizzle=128),
    "rows-missing": functools.partial(ak.tile_ring, tiles=6),
}
BUGS = [
    *((name, ak.tile_ring, *bug) for name, bug in RING.items()),
    *((name, *bug) for name, bug in OTHERS.items()),
]


def found(kernel, ptx, seed):
    try:
        got, want, _ = kernel(ptx, seed)
    except EmulationError as error:
        return type(error)
    return None if torch.equal(got, want) else WRONG


@pytest.mark.parametrize(("name", "kernel", "old", "new", "may"), BUGS, ids=[b[0] for b in BUGS])
def test_bugs_surface_in_every_seed(name, kernel, old, new, may):
    ptx = ak.compiled(ak.SOURCES[kernel], old, new)
    shown = [found(kernel, ptx, seed) for seed in SEEDS]
    assert set(shown) <= set(may if isinstance(may, tuple) else (may,)), shown


@pytest.mark.parametrize("kernel", MISUSE.values(), ids=MISUSE)
def test_wrong_launches_have_wrong_results(kernel):
    assert [found(kernel, ak.compiled("tile_ring"), seed) for seed in SEEDS] == 4 * [WRONG]
