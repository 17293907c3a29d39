"""GPUs below compute capability 8.0, for which no kernel is compiled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.ops import OPS
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime import operators as emulated
from test_ops import samples_of

backends_module = import_module("capmoe_kernels.backends")  # whose name is also a function's


@pytest.fixture
def gpus(monkeypatch):
    """A torch that has GPUs of these compute capabilities, and a build with kernels for them."""

    def are(*capabilities):
        state = cm.backends()
        serving, absent = state.serving | {"cuda": "cuda"}, dict(state.absent)
        absent.pop("cuda", None)
        monkeypatch.setattr(backends_module, "_STATE", cm.Backends(serving, absent))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])

    return are


@pytest.mark.parametrize("capabilities", [[], [(8, 0)], [(9, 0), (8, 6)], [(12, 0)]])
def test_new_gpus_are_served(gpus, capabilities):
    gpus(*capabilities)
    state = cm.backends()
    assert state.serving["cuda"] == "cuda"
    assert not any("cuda" in name for name in state.absent)


@pytest.mark.parametrize("capabilities", [[(7, 5)], [(7, 0), (6, 1)]])
def test_old_gpus_are_not(gpus, capabilities):
    gpus(*capabilities)
    state = cm.backends()
    assert "cuda" not in state.serving
    for device, (major, minor) in enumerate(capabilities):
        assert f"cuda:{device}: it has compute capability {major}.{minor}" in state.absent["cuda"]
    assert "need 8.0" in state.absent["cuda"]
    assert "not cuda: cuda:0" in str(state)


def test_an_old_gpu_beside_a_new_one(gpus):
    gpus((9, 0), (7, 5))
    state = cm.backends()
    assert state.serving["cuda"] == "cuda"
    assert "cuda on cuda:0" not in state.absent
    assert "compute capability 7.5" in state.absent["cuda on cuda:1"]


def test_nobody_asks_the_gpus_of_a_torch_without_kernels(monkeypatch):
    """Asking would initialise CUDA."""
    monkeypatch.setattr(backends_module, "_STATE", cm.Backends({"cuda": "reference"}, {}))
    monkeypatch.delattr(torch.cuda, "get_device_capability")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cm.backends().serving == {"cuda": "reference"}


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_refused_before_any_launch(name):
    reason = emulated.why_absent()
    if reason is not None:
        pytest.skip(f"cuda-emulated: {reason}")
    if torch.__version__ < torch.torch_version.TorchVersion("2.13"):
        pytest.skip("before torch 2.13 an error in an op of the stable ABI ends the process")

    samples = samples_of(name)

    def refused():  # in a thread of its own: the binding remembers the device
        with emulated.UseEmulatedCuda(), runtime.recording(arch="sm_75") as record:
            for arguments in samples:
                with pytest.raises(RuntimeError, match=r"of compute capability 8\.0.*has 7\.5"):
                    getattr(torch.ops.capmoe, name)(*arguments)
        return record

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(refused).result().launches == []
