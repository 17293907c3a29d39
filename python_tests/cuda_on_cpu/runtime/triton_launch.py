"""``kernel[grid](...)`` of Triton on CPU tensors: what Triton compiles for a GPU, emulated.

Triton chooses, specialises and compiles as it does on a GPU; only its last two steps differ: there
is no ptxas, and the launch is the emulator's.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import torch
import triton
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend

from ..arguments import Const
from ..errors import Unsupported
from .devices import device_numbers
from .launches import run_kernel, runnable_kernel
from .record import emulation, options

INTEGERS = {f"{sign}{bits}": bits // 8 for sign in "iu" for bits in (8, 16, 32, 64)}
INTEGERS |= {"i1": 1, "u1": 1}
FLOATS = {"fp32": "<f", "f32": "<f", "fp64": "<d", "fp16": "<e"}


class PtxBackend(CUDABackend):
    """Triton's compiler for NVIDIA without its last stage."""

    def __init__(self, target: GPUTarget):
        super().__init__(target)
        self.binary_ext = "ptx"

    def add_stages(self, stages, options, language) -> None:
        super().add_stages(stages, options, language)
        del stages["cubin"]

    def hash(self) -> str:
        return f"{super().hash()}-ptx"  # Triton's cache holds kernels with cubins, too


def scalar(value, kind: str) -> bytes:
    """A number as Triton passes it to a parameter."""
    if kind in INTEGERS:
        size = INTEGERS[kind]
        return (int(value) & (256**size - 1)).to_bytes(size, "little")
    if kind in FLOATS:
        return struct.pack(FLOATS[kind], value)
    if kind == "bf16":
        return struct.pack("<h", torch.tensor(value, dtype=torch.bfloat16).view(torch.int16).item())
    raise Unsupported(f"a Triton argument of type {kind}")


def flat(signature, values) -> Iterator[tuple[str, object]]:
    """The types and values of what a kernel takes at run time; tuples are taken apart."""
    for kind, value in zip(signature, values, strict=True):
        if isinstance(kind, tuple):
            yield from flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def argument(kind: str, value):
    """What the emulator takes for a parameter: tensors stay tensors, so that bounds are theirs."""
    if not kind.startswith("*"):
        return scalar(value, kind)
    if value is None or isinstance(value, int):
        return value
    if not isinstance(value, torch.Tensor):
        raise Unsupported(f"a Triton pointer from {type(value).__name__}")
    return Const(value) if kind.startswith("*k") else value


def scratch(size: int, alignment: int) -> torch.Tensor | None:
    """Memory that Triton gives a kernel to work in."""
    if not size:
        return None
    memory = torch.empty(size + alignment, dtype=torch.uint8)
    return memory[-memory.data_ptr() % alignment :]


class Launcher:
    """Starts one compiled kernel, as Triton's CudaLauncher does."""

    def __init__(self, src, metadata):
        self.signature, self.metadata = tuple(src.signature.values()), metadata

    def __call__(self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *values):
        meta = self.metadata
        kernel = runnable_kernel(function.ptx, function.name, options().arch)
        args = [argument(*pair) for pair in flat(self.signature, values)]
        blocks = x * y * z * meta.num_ctas
        args.append(scratch(blocks * meta.global_scratch_size, meta.global_scratch_align))
        args.append(scratch(blocks * meta.profile_scratch_size, meta.profile_scratch_align))
        if blocks == 0:  # as Triton's own launcher
            return
        for hook in (enter, leave):
            if hook is not None and getattr(hook, "calls", True):
                raise Unsupported("Triton's launch hooks")
        threads = (32 * meta.num_warps, 1, 1)
        together = {"cooperative": bool(meta.launch_cooperative_grid)}
        if meta.num_ctas != 1:
            together["cluster"] = (meta.num_ctas, 1, 1)
        run_kernel(kernel, (x * meta.num_ctas, y, z), threads, args, meta.shared, **together)


class Utilities:
    """What Triton asks of its C extension."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        numbers = device_numbers(f"sm_{device}", options().multiprocessors)
        return {
            "max_shared_mem": numbers.shared_per_block,
            "max_num_regs": 65536,
            "multiprocessor_count": numbers.multiprocessors,
            "warpSize": 32,
        }

    def load_binary(self, name: str, ptx: bytes, shared: int, device: int):
        """The module, the function, its registers and spills, which are not known, and threads."""
        return ptx, SimpleNamespace(name=name, ptx=ptx.decode()), 0, 0, 1024

    def unload_module(self, module) -> None:
        pass


class EmulatedDriver(DriverBase):
    """A device whose number is its architecture's: Triton keeps its kernels by device."""

    def __init__(self):
        self.utils = Utilities()
        self.launcher_cls = Launcher

    @classmethod
    def is_active(cls) -> bool:
        return False  # it is set by hand

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise Unsupported("Triton's C++ launcher")

    def get_current_device(self) -> int:
        return int(options().arch.removeprefix("sm_"))

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.get_current_device(), 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self):
        raise Unsupported("Triton's autotuner: nothing here is a time, give it one configuration")


@contextlib.contextmanager
def triton_emulation(**changes) -> Iterator[None]:
    """Within it Triton kernels run on CPU tensors; ``changes`` as for ``emulation``.

    Raises:
        EmulationError: what the emulator found, from the launch itself.
    """
    config = triton.runtime.driver
    before, nvidia = config._active, backends["nvidia"]
    config.set_active(EmulatedDriver())
    backends["nvidia"] = Backend(PtxBackend, nvidia.driver)
    try:
        with emulation(**changes):
            yield
    finally:
        backends["nvidia"] = nvidia
        config._active = before
