"""What sm_90 adds to launches, by the runtime's own calls: clusters, grid barriers, tensor maps."""

from __future__ import annotations

import ctypes
import functools
import shutil
from pathlib import Path

import pytest
import torch

from cuda_on_cpu import Const, errors, runtime
from cuda_on_cpu.runtime.build_extension import build_library

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")

SEEDS = range(4)
SOURCE = Path(__file__).parent / "kernels" / "launchers_sm90.cu"


@functools.cache
def library() -> ctypes.CDLL:
    return runtime.open_library(build_library([SOURCE], archs=("90a",)))


def call(name, *args, arch="sm_90", seed=0):
    function = getattr(library(), name)
    tensors = [value for value in args if isinstance(value, torch.Tensor | Const)]
    values = [getattr(value, "tensor", value) for value in args]
    pointers = [
        ctypes.c_void_p(value.data_ptr()) if isinstance(value, torch.Tensor) else value
        for value in values
    ]
    with runtime.recording(arch=arch, seed=seed) as record, runtime.device_memory(*tensors):
        code = function(*pointers)
    assert code == 0
    return record


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_clusters_by_attribute(size, seed):
    out = torch.zeros(8, dtype=torch.int32)
    record = call("launch_ask_neighbour", out, 8, size, seed=seed)
    first = [block // size * size for block in range(8)]
    assert out.tolist() == [100 + f + (b + 1 - f) % size for b, f in enumerate(first)]
    assert record.launches[0].cluster == (size, 1, 1)


def test_clusters_that_do_not_divide_the_grid():
    with pytest.raises(errors.BadLaunch, match="not a multiple"):
        call("launch_ask_neighbour", torch.zeros(8, dtype=torch.int32), 8, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_barrier_of_a_grid(seed):
    """More blocks than an ordinary launch has in flight."""
    parts, out = torch.zeros(2, 40, dtype=torch.int32)
    record = call("launch_sum_of_all", parts, out, 40, seed=seed)
    assert out.tolist() == [sum(i * i for i in range(40))] * 40
    assert record.launches[0].cooperative


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tensor_map_as_an_argument(seed):
    """A tile over the edge is filled with zeros."""
    x, out = torch.arange(20.0 * 24).view(20, 24), torch.full((8, 8), -1.0)
    call("launch_copy_tile", Const(x), 20, 24, 20, 15, out, seed=seed)
    expected = torch.zeros(8, 8)
    expected[:5, :4] = x[15:, 20:]
    assert torch.equal(out, expected)


def test_a_tensor_map_that_the_driver_would_refuse():
    x = torch.zeros(8, 15)
    with pytest.raises(errors.Invalid, match="strides of"):
        call("launch_copy_tile", x, 8, 15, 0, 0, torch.zeros(8, 8))


def test_a_tensor_map_of_more_than_the_tensor():
    x, out = torch.zeros(16, 16), torch.zeros(8, 8)
    with pytest.raises(errors.OutOfBounds):
        call("launch_copy_tile", Const(x[:12].clone()), 16, 16, 8, 8, out)


def test_kernels_for_sm_90a_alone_do_not_run_on_sm_80():
    with pytest.raises(errors.BadLaunch, match="no kernel image for sm_80"):
        call("launch_ask_neighbour", torch.zeros(8, dtype=torch.int32), 8, 1, arch="sm_80")
