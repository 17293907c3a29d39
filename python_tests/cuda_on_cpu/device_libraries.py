"""Libraries of other people's device-wide algorithms, called with their own host code.

Their launches go to the stand-in for CUDA's runtime; a test module that imports this is skipped
where that, nvcc or the library's headers are missing.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import shutil
from pathlib import Path

import pytest
import torch

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)
runtime = pytest.importorskip("cuda_on_cpu.runtime")
extension = pytest.importorskip("cuda_on_cpu.runtime.build_extension")
objects = pytest.importorskip("cuda_on_cpu.runtime.objects")

CUTE = ("--expt-relaxed-constexpr",)  # which CUTLASS 3 asks for
FOLDER = Path(__file__).parent / "kernels"


def cutlass_include() -> Path:
    """The folder with cutlass/cutlass.h, of the package nvidia-cutlass."""
    try:
        files = importlib.metadata.files("nvidia-cutlass") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvidia-cutlass is not installed", allow_module_level=True)
    header = next(file for file in files if str(file).endswith("include/cutlass/cutlass.h"))
    return Path(header.locate()).parents[1]


def commands(name: str, arch: str, include: tuple[str, ...]) -> dict[Path, list[str]]:
    options = [option for folder in include for option in ("-isystem", folder)]
    return {FOLDER / f"{name}.cu": [*extension.nvcc_command([arch]), *CUTE, *options]}


@functools.cache
def library(name: str, arch: str = "80", include: tuple[str, ...] = ()) -> ctypes.CDLL:
    """kernels/`name`.cu compiled for one architecture, and loaded."""
    with extension.build_lock("extension"):
        built = objects.compile_objects(commands(name, arch, include))
        path = objects.link(built, f"{name}_{arch}.so", extension.with_cudart())
    return runtime.open_library(path)


def call(function, *args) -> int:
    """Calls it with tensors (``Const`` are read only) as device memory, numbers, or ctypes."""
    tensors = [value for value in args if hasattr(value, "tensor") or torch.is_tensor(value)]
    with runtime.device_memory(*tensors):
        return function(*map(_argument, args))


def _argument(value):
    value = getattr(value, "tensor", value)
    return ctypes.c_void_p(value.data_ptr()) if torch.is_tensor(value) else value
