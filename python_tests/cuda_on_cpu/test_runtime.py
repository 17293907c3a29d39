"""Compiled launchers, with their ``<<<>>>``, on CPU tensors through the stand-in for libcudart."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from cuda_on_cpu import Const, runtime
from cuda_on_cpu.launchers import call

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")

KIB = 1024


@pytest.mark.parametrize("seed", range(4))
def test_a_launch(seed):
    x, y = torch.randn(1000), torch.randn(1000)
    expected = torch.addcmul(y, x, torch.tensor(2.0))
    with runtime.recording(seed=seed) as record:
        assert call("launch_saxpy", Const(x), y, 2.0, 1000, None) == 0
    torch.testing.assert_close(y, expected)
    (launch,) = record.launches
    assert (launch.name, launch.symbol) == ("saxpy", "_Z5saxpyPKfPffi")
    assert (launch.grid, launch.block, launch.dynamic_shared) == ((8, 1, 1), (128, 1, 1), 0)
    assert launch.counts["global_load_bytes"] == 2 * 4 * 1000
    assert record.synchronisations == record.allocations == []


def test_records_nest_and_end():
    x, y = torch.ones(4), torch.ones(4)
    with runtime.recording() as outer:
        call("launch_saxpy", x, y, 1.0, 4, None)
        with runtime.recording() as inner:
            call("launch_saxpy", x, y, 1.0, 4, None)
    call("launch_saxpy", x, y, 1.0, 4, None)
    assert (outer.names, inner.names) == (["saxpy"] * 2, ["saxpy"])
    assert outer.counts["warp_instructions"] == 2 * inner.counts["warp_instructions"] > 0


def test_dynamic_shared_memory_beyond_the_default():
    x = torch.arange(163 * KIB // 4, dtype=torch.int32)
    out = torch.zeros_like(x)
    with runtime.recording() as record:
        assert call("launch_reverse", Const(x), out, len(x), 163 * KIB) == 0
    assert torch.equal(out, x.flip(0))
    assert record.launches[0].dynamic_shared == 163 * KIB


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_a_cooperative_launch_wait_for_each_other(seed):
    """More blocks than are otherwise in flight at once."""
    out = torch.zeros(20, dtype=torch.int32)
    with runtime.recording(seed=seed, resident=4) as record:
        assert call("launch_agree", torch.zeros(2, dtype=torch.int32), out, 20) == 0
    assert out.tolist() == [sum(range(20))] * 20
    assert record.launches[0].cooperative


@pytest.mark.parametrize(("arch", "number"), [("sm_80", 800), ("sm_90", 900)])
def test_arguments_by_value_and_the_architecture(arch, number):
    out = torch.zeros(5, dtype=torch.int64)
    with runtime.emulation(arch=arch):
        call("launch_describe", 7, -9, ctypes.c_char(b"t"), ctypes.c_double(0.375), out)
    assert out.tolist() == [7, -9, ord("t"), 3, number]


def test_variables_of_a_module():
    """table is 1 2 3 4 when the module is loaded; each call multiplies it."""
    at = torch.tensor([3, 0, 1], dtype=torch.int32)
    weights, out = torch.tensor([0.5, 2.0, 4.0]), torch.zeros(3)
    start = {}
    for factor in (1, 10):
        with runtime.recording() as record:
            call("launch_use_table", Const(at), out, Const(weights), factor)
        start[factor] = out.clone()
    assert start[10].tolist() == (10 * start[1]).tolist()
    assert start[1].tolist() == [4 * 0.5, 1 * 2.0, 2 * 4.0]
    assert record.synchronisations == [
        *("cudaMemcpyToSymbol", "cudaMemcpyFromSymbol", "cudaMemcpyToSymbol")
    ]


def test_streams_events_and_own_memory():
    x, host = torch.randn(100), torch.full((100,), float("nan"))
    with runtime.recording() as record, runtime.device_memory(Const(x)):
        call("sum_through_streams", Const(x), host, 100, 3)
    assert torch.equal(host, x + x + x)
    assert record.names == ["saxpy"] * 3
    assert record.allocations == [("cudaMallocAsync", 400)]
    assert record.frees == ["cudaFreeAsync"]
    assert record.fills == [("cudaMemsetAsync", 400)]
    assert record.copies == [("cudaMemcpyAsync", 400)]
    # A copy to memory that is not pinned waits, whatever its name says.
    assert record.synchronisations == ["cudaMemcpyAsync", "cudaStreamSynchronize"]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, [8, 108, 163 * KIB]),
        ({"arch": "sm_90"}, [9, 132, 227 * KIB]),
        ({"arch": "sm_90", "multiprocessors": 3}, [9, 3, 227 * KIB]),
    ],
)
def test_the_device_says_what_it_is(options, numbers):
    out = torch.zeros(6, dtype=torch.int32)
    with runtime.emulation(**options):
        assert call("device_numbers", out) == 0
    assert out.tolist() == [*numbers, *numbers[1:], 1]


def test_occupancy_and_attributes():
    """A block of 128 threads with 40 KiB, and 1 KiB that the system takes: four in 164 KiB."""
    blocks, attributes = torch.zeros(1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    assert call("occupancy_of_reverse", blocks, 128, 40 * KIB) == 0
    assert blocks.item() == 4
    assert call("occupancy_of_reverse", blocks, 1024, 0) == 0
    assert blocks.item() == 2  # of 2048 threads
    assert call("attributes_of_reverse", attributes) == 0
    registers, threads, dynamic_shared = attributes.tolist()
    assert 0 < registers <= 32
    assert (threads, dynamic_shared) == (1024, 48 * KIB)
