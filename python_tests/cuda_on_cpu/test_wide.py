"""128 bits at once: loads, stores, moves, and atomic exchange and compare-and-swap."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import compile_cuda, emulate
from cuda_on_cpu.errors import Misaligned, OutOfBounds
from cuda_on_cpu.ptx_snippets import at, launch

SEEDS = range(4)
CUDA = """
struct alignas(16) Pair { unsigned long long a, b; };
extern "C" __global__ void exchange(Pair* cell, Pair* old) {
  const unsigned long long i = blockIdx.x * blockDim.x + threadIdx.x;
  old[i] = atomicExch(cell, Pair{i, ~i});
}
extern "C" __global__ void add(Pair* cell, Pair* old) {
  Pair seen = atomicCAS(cell, Pair{0, 0}, Pair{0, 0}), was;
  do {
    was = seen;
    seen = atomicCAS(cell, was, Pair{was.a + 1, was.b + 2});
  } while (seen.a != was.a || seen.b != was.b);
  old[blockIdx.x * blockDim.x + threadIdx.x] = seen;
}
"""


@pytest.fixture(scope="module")
def ptx():
    return compile_cuda(CUDA, "sm_90")


@pytest.mark.parametrize("seed", SEEDS)
def test_exchange(ptx, seed):
    """Every pair comes out once, whole; the last stays."""
    cell, old = torch.tensor([-5, -6]), torch.zeros(128, 2, dtype=torch.int64)
    emulate(ptx, "exchange")[2, 64](cell, old, seed=seed, on_gpu=False)  # the order is free
    seen = sorted([tuple(pair) for pair in old.tolist()] + [tuple(cell.tolist())])
    assert seen == sorted([(-5, -6)] + [(i, ~i) for i in range(128)])


@pytest.mark.parametrize("seed", SEEDS)
def test_compare_and_swap(ptx, seed):
    cell, old = torch.tensor([2**63 - 10, 7]), torch.zeros(48, 2, dtype=torch.int64)
    emulate(ptx, "add")[1, 48](cell, old, seed=seed, on_gpu={1: False})
    assert cell.tolist() == [2**63 - 10 + 48 - 2**64, 7 + 96]
    assert sorted(b for _, b in old.tolist()) == list(range(7, 103, 2))


@pytest.mark.parametrize("space", ["global", "shared"])
def test_moves_loads_and_stores(space):
    """Through both halves, which are exchanged on the way."""
    shared = ".shared .align 16 .b8 cells[512];\n mov.u32 t1, cells; mad.lo.u32 t0, tid, 16, t1;\n"
    through = (
        "st.shared.b128 [t0], q; ld.shared.b128 r, [t0];" if space == "shared" else "mov.b128 r, q;"
    )
    body = ".reg .b128 q, r;\n" + shared + at("g0", 16, "x0") + at("g1", 16, "x1")
    body += f"ld.global.b128 q, [x0];\n{through}\nmov.b128 {{x2, x3}}, r;\n"
    body += "mov.b128 q, {x3, x2};\nst.global.b128 [x1], q;"
    given = torch.arange(64).reshape(32, 2) * (2**57 + 3)
    out = torch.zeros_like(given)
    launch(body, given, out, target="sm_90")
    assert torch.equal(out, given.flip(1))


def test_bounds_and_alignment():
    body = ".reg .b128 q;\nld.global.b128 q, [g0+{0}];"
    two = torch.zeros(3, dtype=torch.int64)
    launch(body.format(0), two, block=1, target="sm_90")
    with pytest.raises(OutOfBounds):
        launch(body.format(16), two, block=1, target="sm_90")
    with pytest.raises(Misaligned):
        launch(body.format(8), two, block=1, target="sm_90")
