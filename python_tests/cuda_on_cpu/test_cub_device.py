"""CUB's device-wide algorithms, launched by CUB's own host code, against torch."""

from __future__ import annotations

import ctypes

import pytest
import torch

from cuda_on_cpu import Const
from cuda_on_cpu import nvcc_kernels as nk
from cuda_on_cpu.device_libraries import call, library, runtime

SEEDS = range(4)


def run(name, seed, *args):
    """Asks for the temporary memory, then runs; the record of the launches."""
    function = getattr(library("cub_device"), name)
    size = ctypes.c_size_t()
    assert call(function, None, ctypes.byref(size), *args) == 0
    memory = torch.full((max(size.value, 1),), 0xCD, dtype=torch.uint8)
    with runtime.recording(seed=seed, max_steps=20_000_000) as record:
        assert call(function, memory, ctypes.byref(size), *args) == 0
    assert record.launches
    return record


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 5000, 40_000])
def test_scan(count, seed):
    values, sums = nk.integers(100, count), nk.unwritten(count, dtype=torch.int32)
    record = run("inclusive_sum", seed, Const(values), sums, count)
    assert torch.equal(sums, values.cumsum(0, dtype=torch.int32))
    assert record.warnings == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [3, 30_000])
def test_reduce(count, seed):
    values, total = nk.integers(64, count).float(), nk.unwritten(1)
    run("sum", seed, Const(values), total, count)
    assert total.item() == values.sum().item()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [200, 20_000])
def test_radix_sort(count, seed):
    keys, values = nk.integers(1 << 20, count), torch.arange(count, dtype=torch.int32)
    out = [nk.unwritten(count, dtype=torch.int32) for _ in range(2)]
    run("sort_pairs", seed, Const(keys), out[0], Const(values), out[1], count)
    expected = keys.sort(stable=True)
    assert torch.equal(out[0], expected.values)
    assert torch.equal(out[1], expected.indices.int())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 10_000])
def test_select(count, seed):
    values, flags = nk.integers(1000, count), nk.integers(2, count, dtype=torch.uint8)
    kept, number = nk.unwritten(count, dtype=torch.int32), nk.unwritten(1, dtype=torch.int32)
    run("select_flagged", seed, Const(values), Const(flags), kept, number, count)
    expected = values[flags.bool()]
    assert number.item() == len(expected)
    assert torch.equal(kept[: len(expected)], expected)
