"""How a launch is compared with a GPU's, with a driver that only copies memory."""

from __future__ import annotations

import ctypes

import pytest
import torch

from cuda_on_cpu import Const, Empty, emulate, gpu
from cuda_on_cpu.errors import OutOfBounds
from cuda_on_cpu.ptx_snippets import module

STORE = "mad.wide.u32 x0, tid, 4, g1; st.global.u32 [x0], tid;"


class CopyingDriver:
    """Its kernels write ``result`` through their second pointer."""

    def __init__(self):
        self.memory, self.loaded, self.result = {}, 0, (0, 1, 2, 3)

    def cuMemAlloc_v2(self, out, size):  # noqa: N802
        buffer = ctypes.create_string_buffer(size.value + gpu.ALIGNMENT)
        out._obj.value = -(-ctypes.addressof(buffer) // gpu.ALIGNMENT) * gpu.ALIGNMENT
        self.memory[out._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, at):  # noqa: N802
        del self.memory[at.value]
        return 0

    def cuMemcpyHtoD_v2(self, to, source, size):  # noqa: N802
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    cuMemcpyDtoH_v2 = cuMemcpyHtoD_v2  # noqa: N815

    def cuModuleLoadData(self, out, text):  # noqa: N802
        self.loaded += 1
        return 0

    def cuLaunchKernel(self, *args):  # noqa: N802
        pointers = ctypes.cast(args[-2][1], ctypes.POINTER(ctypes.c_uint64))
        self.address = pointers[0]
        ctypes.memmove(self.address, (ctypes.c_int * 4)(*self.result), 16)
        return 0

    def __getattr__(self, name):
        return lambda *args: 0


@pytest.fixture
def driver(monkeypatch):
    made = CopyingDriver()
    monkeypatch.setattr(gpu, "driver", lambda: made)
    monkeypatch.setattr(gpu, "capability", lambda: 90)
    return made


def launch(out, body=STORE, **options):
    unused = torch.zeros(1)
    return emulate(module(body, 2))[1, 4](Const(unused), out, **options)


@pytest.mark.parametrize("wrap", [lambda t: t, Empty])
def test_what_agrees_passes_and_alignment_is_the_hosts(wrap, driver):
    storage = torch.zeros(9, dtype=torch.int32)
    launch(wrap(storage[1:]))
    assert storage.tolist() == [0, 0, 1, 2, 3, 0, 0, 0, 0]
    assert driver.address % gpu.ALIGNMENT == storage[1:].data_ptr() % gpu.ALIGNMENT
    assert driver.loaded == 1
    assert driver.memory == {}


def test_what_differs_is_named(driver):
    driver.result = (0, 1, 7, 3)
    with pytest.raises(gpu.MismatchError, match=r"argument 1: 1 of 4 values differ, first 2: .*7"):
        launch(torch.zeros(4, dtype=torch.int32))
    assert driver.memory == {}
    launch(torch.zeros(4, dtype=torch.int32), on_gpu={1: False})
    launch(torch.zeros(4, dtype=torch.int32), on_gpu=False)


def test_a_fault_loads_nothing_and_frees_everything(driver):
    with pytest.raises(OutOfBounds):
        launch(torch.zeros(3, dtype=torch.int32))
    assert driver.loaded == 0
    assert driver.memory == {}


def test_floats_may_be_a_little_apart(driver):
    floats = "mov.b32 t0, 0f3F800000; mad.wide.u32 x0, tid, 4, g1; st.global.u32 [x0], t0;"
    near = 0x3F800000 + 40  # 40 units in the last place: 5e-6
    driver.result = (near,) * 4
    launch(torch.zeros(4), floats, on_gpu=1e-5)
    with pytest.raises(gpu.MismatchError):
        launch(torch.zeros(4), floats, on_gpu=1e-6)
    with pytest.raises(gpu.MismatchError):
        launch(torch.zeros(4), floats)
