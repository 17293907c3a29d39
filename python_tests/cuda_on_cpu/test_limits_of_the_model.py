"""What the emulator refuses, and orders that hold for some lanes only."""

from __future__ import annotations

import shutil

import pytest
import torch

from cuda_on_cpu import Const, compile_cuda, emulate
from cuda_on_cpu.errors import GlobalRace, SharedRace, Unsupported

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")

HALVES = """
extern "C" __global__ void swap_halves(const int* x, int* y) {
  __shared__ int s[32];
  const int lane = threadIdx.x;
  s[lane] = x[lane];
  __syncwarp(MASK);
  y[lane] = s[lane ^ PARTNER];
}
"""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("mask", "partner", "races"),
    [
        ("0xffffffff", 16, False),
        ("0xffff << (lane & 16)", 8, False),
        ("0xffff << (lane & 16)", 16, True),
        ("0xff << (lane & 24)", 8, True),
    ],
)
def test_a_partial_syncwarp_orders_its_lanes_only(seed, mask, partner, races):
    source = HALVES.replace("MASK", mask).replace("PARTNER", str(partner))
    kernel = emulate(compile_cuda(source))
    x, y = torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    if races:
        with pytest.raises(SharedRace):
            kernel[1, 32](Const(x), y, seed=seed)
    else:
        kernel[1, 32](Const(x), y, seed=seed)
        assert torch.equal(y, x[torch.arange(32) ^ partner])


def test_recursion_is_refused():
    source = """
    __device__ __noinline__ int down(int n) { return n < 2 ? n : down(n - 1) + down(n - 2); }
    extern "C" __global__ void fibonacci(int* y, int n) { *y = down(n); }
    """
    with pytest.raises(Unsupported, match="recursion"):
        emulate(compile_cuda(source))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("atomic", [True, False])
def test_blocks_that_add_to_one_number(seed, atomic):
    statement = "atomicAdd(total, 1);" if atomic else "*total += 1;"
    source = f'extern "C" __global__ void count(int* total) {{ {statement} }}'
    kernel = emulate(compile_cuda(source))
    total = torch.zeros(1, dtype=torch.int32)
    if atomic:
        kernel[8, 1](total, seed=seed)
        assert total.item() == 8
    else:
        with pytest.raises(GlobalRace):
            kernel[8, 1](total, seed=seed)
