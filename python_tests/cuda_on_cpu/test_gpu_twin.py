"""How a launch is compared with a GPU's, with a driver that only copies memory."""

from __future__ import annotations

import ctypes

import pytest
import torch

from cuda_on_cpu import Const, Empty, emulate, gpu, gpu_launch, tensor_snippets
from cuda_on_cpu.errors import OutOfBounds
from cuda_on_cpu.gpu_launch import Attribute
from cuda_on_cpu.ptx_snippets import module
from cuda_on_cpu.tensor_map import tensor_map
from cuda_on_cpu.tensor_snippets import MAP

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

    def cuLaunchKernelEx(self, config, function, arguments, extra):  # noqa: N802
        self.config = config._obj
        array = ctypes.cast(self.config.attributes, ctypes.POINTER(Attribute))
        self.attributes = [(a.id, *a.value[:3]) for a in array[: self.config.count]]
        pointers = ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_uint64))
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


def test_clusters_and_cooperative_launches_are_asked_for(driver):
    out, two = torch.zeros(4, dtype=torch.int32), module(STORE, 2, target="sm_90")
    kernel = emulate(two)
    kernel[2, 4, 48](Const(torch.zeros(1)), out, cluster=2, cooperative=True)
    assert driver.attributes == [(gpu_launch.CLUSTER_DIMENSION, 2, 1, 1), (2, 1, 0, 0)]
    assert (*driver.config.grid, *driver.config.block) == (2, 1, 1, 4, 1, 1)
    assert driver.config.dynamic_shared == 48
    kernel[1, 4](Const(torch.zeros(1)), out)
    assert driver.attributes == []


def test_a_tensor_map_is_encoded_by_the_driver_for_the_copy(driver, monkeypatch):
    """The kernel gets the driver's 128 bytes, made of where the tensor lies there."""
    asked = []

    def encode(place, *numbers):
        ctypes.memset(place.value, 7, 128)
        asked.extend(n.value if hasattr(n, "value") else list(n) for n in numbers)
        return 0

    def start(config, function, arguments, extra):
        driver.given = ctypes.string_at(arguments[1], 128)
        ctypes.memmove(asked[2], (ctypes.c_int * 4)(*driver.result), 16)
        return 0

    monkeypatch.setattr(driver, "cuTensorMapEncodeTiled", encode, raising=False)
    monkeypatch.setattr(driver, "cuLaunchKernelEx", start)
    x = torch.zeros(3, 5, 8, dtype=torch.int32)
    x.view(-1)[:4] = torch.arange(4)
    a_map = tensor_map(x[:2], (1, 2, 8), swizzle=32)
    tensor_snippets.run(MAP + "@p0 prefetch.tensormap [x5];", torch.zeros(4), a_map, on_gpu={0: 0})
    assert driver.given == b"\7" * 128
    types, rank, address, *rest = asked
    assert (types, rank) == (3, 3)  # CU_TENSOR_MAP_DATA_TYPE_INT32
    assert address % 16 == 0
    assert address != x.data_ptr()
    assert rest == [[8, 5, 2], [32, 160], [8, 2, 1], [1, 1, 1], 0, 1, 0, 0]
    driver.result = (0, 1, 9, 3)
    with pytest.raises(gpu.MismatchError, match="argument 1: 1 of 80 values differ, first 2"):
        tensor_snippets.run(MAP, torch.zeros(4), a_map, on_gpu={0: 0})
