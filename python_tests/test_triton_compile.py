"""Triton's kernels compiled for every architecture, none of which need be there: what they take.

The layer is called as ever, with a driver that compiles for a target and launches nothing.
"""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

import capmoe_kernels as cm
from cases import make_experts, normal, router_logits
from cuda_on_cpu.toolkit import find_tool

pytest.importorskip("triton")

import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from capmoe_kernels import triton_kernels

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
TENSOR = {"sm_80": r"HMMA\.16816", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}
nvidia = pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])


@dataclass
class Compiled:
    name: str
    binary: bytes
    shared: int
    threads: int


@dataclass
class CompileOnly(DriverBase):
    """Compiles for an architecture what is launched, and launches nothing."""

    arch: str
    kernels: list[Compiled] = field(default_factory=list)

    def __post_init__(self):
        self.utils = self

    @classmethod
    def is_active(cls):
        return False

    def map_python_to_cpp_type(self, ty):
        raise NotImplementedError

    def get_current_device(self):
        return f"compile only {self.arch}"

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        if self.arch.startswith("sm_"):
            return GPUTarget("cuda", int(self.arch[3:]), 32)
        return GPUTarget("hip", self.arch, 64)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED[self.arch], "multiprocessor_count": 100, "warpSize": 32}

    def load_binary(self, name, binary, shared, device):
        return None, SimpleNamespace(name=name, binary=binary), 0, 0, 1024

    def unload_module(self, module):
        pass

    def launcher_cls(self, src, metadata):
        def launch(x, y, z, stream, function, *rest):
            threads = metadata.num_warps * self.get_current_target().warp_size
            kernel = Compiled(function.name, function.binary, metadata.shared, threads)
            driver = triton.runtime.driver.active
            driver.kernels.append(kernel)

        return launch


class UseTriton(TorchDispatchMode):
    """Within it every capmoe op is the Triton function, whatever its tensors are on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "capmoe":
            func = getattr(triton_kernels, func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def compiling(arch):
    """Kernels that are launched within, compiled."""
    config, driver = triton.runtime.driver, CompileOnly(arch)
    before = config._active
    config.set_active(driver)
    try:
        with UseTriton():
            yield driver.kernels
    finally:
        config._active = before


def cuobjdump(tmp_path, kernel, option):
    path = tmp_path / "kernel.cubin"
    path.write_bytes(kernel.binary)
    command = [find_tool("cuobjdump"), option, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def complaints(tmp_path, arch, kernel):
    """Memory that a thread or a block should not need."""
    usage = cuobjdump(tmp_path, kernel, "-res-usage")
    registers, stack, local = map(
        int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    )
    found = []
    if stack or local:
        found.append(f"{stack} bytes of stack, {local} of local memory")
    if kernel.shared > SHARED[arch]:
        found.append(f"{kernel.shared} bytes of shared memory")
    if registers * kernel.threads > 65536:
        found.append(f"{registers} registers")
    return [f"{arch} {kernel.name}: {words}" for words in found]


LAYERS = [("silu", "concat"), ("swigluoai", "interleaved"), ("gelu_no_mul", "concat")]
SIZES = [(torch.bfloat16, rows) for rows in (1, 40, 200)]
SIZES += [(torch.float32, 1), (torch.float32, 200), (torch.float16, 200)]


@nvidia
@pytest.mark.parametrize(("dtype", "rows"), SIZES, ids=str)
@pytest.mark.parametrize(("activation", "layout"), LAYERS)
def test_experts(tmp_path, arch, dtype, rows, activation, layout):
    """Every tile of the tables: nothing spilled, and the products on tensor cores."""
    if find_tool("cuobjdump") is None:
        pytest.skip("there is no cuobjdump")
    experts = make_experts(4, 256, 256, dtype, activation=activation, layout=layout, bias=True)
    counts = torch.full((4,), rows).int()
    offsets = torch.arange(5).int() * rows
    tokens = torch.zeros(4 * rows, dtype=torch.int32)
    weights = (experts.gate_up_proj, experts.down_proj, experts.gate_up_bias, experts.down_bias)
    with compiling(arch) as kernels:
        torch.ops.capmoe.grouped_mlp(
            normal((7, 256), dtype), *weights, offsets, counts, tokens, activation, layout
        )
    assert [kernel.name for kernel in kernels] == ["grouped_gemm_kernel"] * 2
    for kernel in kernels:
        assert complaints(tmp_path, arch, kernel) == []
        sass = cuobjdump(tmp_path, kernel, "-sass")
        few = "HMMA" if rows == 1 else TENSOR[arch]
        assert bool(re.search(few, sass)) == (dtype != torch.float32)


CAPACITIES = [cm.Capacity(), cm.Capacity(1.0), cm.Capacity(1.0, expand="rank", extra=2)]
CAPACITIES += [cm.Capacity(1.0, scope="device", experts_per_device=4)]


@nvidia
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capacity", CAPACITIES, ids=lambda c: f"{c.factor}-{c.expand}-{c.scope}")
def test_the_other_kernels(tmp_path, arch, capacity, dtype):
    """gate, select, dispatch and combine of 64 experts: nothing spilled."""
    if find_tool("cuobjdump") is None:
        pytest.skip("there is no cuobjdump")
    experts, logits = make_experts(64, 32, 16, dtype), router_logits(100, 64).to(dtype)
    x = normal((100, 32), dtype)
    with compiling(arch) as kernels:
        cm.moe(x, logits, experts, cm.Gating(8), capacity)
        torch.ops.capmoe.dispatch(x, torch.zeros(10, dtype=torch.int32))
    names = [kernel.name for kernel in kernels]
    assert [name for name in names if name != "grouped_gemm_kernel"] == [
        "gate_kernel",
        "select_kernel",
        "combine_kernel",
        "dispatch_kernel",
    ]
    for kernel in kernels:
        assert complaints(tmp_path, arch, kernel) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 40, 200])
def test_amd(dtype, rows):
    """The whole layer for an MI300: nothing of it is NVIDIA's, and its memory suffices."""
    if "amd" not in triton.backends.backends:
        pytest.skip("this Triton does not compile for AMD")
    tokens = rows * 2
    experts = make_experts(4, 256, 256, dtype, bias=True)
    with compiling("gfx942") as kernels:
        cm.moe(normal((tokens, 256), dtype), router_logits(tokens, 4), experts, cm.Gating(2))
    assert len(kernels) == 5
    for kernel in kernels:
        assert kernel.binary[:4] == b"\x7fELF"
        assert kernel.shared <= SHARED["gfx942"]
