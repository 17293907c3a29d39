"""Memory of a launcher's own holds nothing until a kernel, a fill or a copy has written it."""

from __future__ import annotations

import shutil

import pytest
import torch

from cuda_on_cpu import Const, runtime
from cuda_on_cpu.launchers import call

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")


@pytest.mark.parametrize("seed", range(4))
def test_new_memory_is_read(seed):
    """Its launcher multiplies what cudaMalloc gave it."""
    with runtime.recording(seed=seed) as record:
        call("overrun_own_memory", 0)
    assert [warning.kind for warning in record.warnings] == ["uninitialised-global"]


@pytest.mark.parametrize("seed", range(4))
def test_filled_memory_is_read(seed):
    """Zeros first, then a kernel adds to them, then they are copied out."""
    x, host = torch.randn(100), torch.zeros(100)
    with runtime.recording(seed=seed) as record, runtime.device_memory(Const(x)):
        call("sum_through_streams", Const(x), host, 100, 2)
    assert torch.equal(host, x + x)
    assert record.warnings == []
