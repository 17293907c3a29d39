"""torch operators whose CUDA kernels are emulated: a binding on the stable ABI, CPU tensors."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch

from cuda_on_cpu import errors, runtime
from cuda_on_cpu.runtime.operators import define, run_operator

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")

KERNELS = Path(__file__).parent / "kernels"
LIBRARY = "capmoe_example"


@functools.cache
def build():
    from cuda_on_cpu.runtime import open_library
    from cuda_on_cpu.runtime.build_extension import build_operators

    sources = [KERNELS / "operators.cu"], [KERNELS / "operators.cpp"]
    open_library(build_operators(*sources, LIBRARY))


def call(name, *args):
    build()
    return run_operator(getattr(getattr(torch.ops, LIBRARY), name).default, *args)


@pytest.mark.parametrize("seed", range(4))
def test_new_tensors_of_an_operator_are_device_memory(seed):
    x = torch.randn(100)
    with runtime.recording(seed=seed) as record:
        y = call("scaled", x, 3.0, 0)
    assert torch.equal(y, 3 * x)
    assert [(launch.name, launch.grid) for launch in record.launches] == [
        ("scale_kernel", (2, 1, 1))
    ]
    assert record.synchronisations == record.allocations == []


def test_views_of_a_tensor():
    x = torch.randn(100)
    assert torch.equal(call("scaled", x[10:50], 2.0, 0), 2 * x[10:50])


@pytest.mark.parametrize("n", [64, 100])
def test_one_element_beyond_a_new_tensor(n):
    """The input is longer, so that only the write is out of bounds."""
    place = rf"\[block \(1, 0, 0\), thread \({n - 64}, 0, 0\), PTX line \d+, operators.cu:13: st"
    with pytest.raises(errors.OutOfBounds, match=rf"write of 4 bytes at .*{place}"):
        call("scaled", torch.randn(n + 50)[:n], 3.0, 1)


def test_a_fault_that_the_binding_swallows():
    x = torch.randn(10)
    torch.testing.assert_close(call("scaled_twice", x, 3.0, 0), 9 * x)
    with pytest.raises(errors.OutOfBounds):
        call("scaled_twice", x, 3.0, 1)
    torch.testing.assert_close(call("scaled_twice", x, 3.0, 0), 9 * x)


def test_only_what_the_schema_says_is_written():
    x = torch.ones(10)
    call("scale_in_place", x, 3.0)
    assert x.eq(3).all()
    with pytest.raises(errors.ReadOnly, match="declared const"):
        call("scale_an_input", x, 3.0)


def test_a_tensor_that_the_binding_has_freed():
    with pytest.raises(errors.OutOfBounds, match="global write of 4 bytes"):
        call("scale_into_freed_memory", torch.ones(10), 3.0)


def test_tensors_of_other_operators_are_not_device_memory():
    y = call("scaled", torch.ones(10), 3.0, 0)
    with pytest.raises(errors.OutOfBounds, match="in no buffer"), runtime.device_memory():
        getattr(torch.ops, LIBRARY).scale_in_place(y, 2.0)


def test_an_error_of_the_binding_itself():
    """Nothing is launched on a tensor of the wrong type."""
    with pytest.raises(RuntimeError, match="Expected a value") as caught:
        call("scaled", torch.ones(10), "three", 0)
    assert not isinstance(caught.value, errors.EmulationError)


def test_pieces_of_one_allocation():
    x = torch.ones(10)
    first, between, second = call("scaled_in_pieces", x, 3.0, 0).split([10, 2, 10])
    assert (first.tolist(), second.tolist()) == ([9.0] * 10, [3.0] * 10)
    with pytest.raises(errors.OutOfBounds, match=r"at offset -?\d+ of a buffer of \d+"):
        call("scaled_in_pieces", x, 3.0, 1)
    whole = torch.cat([first, between, second])
    torch.testing.assert_close(call("scaled", whole, 1.0, 0), whole, equal_nan=True)


def test_an_operator_with_the_same_schema():
    build()
    define(getattr(torch.ops, LIBRARY).scale_in_place.default._schema, f"{LIBRARY}_copy")
    copy = getattr(torch.ops, f"{LIBRARY}_copy").scale_in_place.default._schema
    assert str(copy) == f"{LIBRARY}_copy::scale_in_place(Tensor(a!) x, float a) -> ()"
