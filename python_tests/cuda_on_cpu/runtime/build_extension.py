"""Compiles launchers and bindings into libraries that call the stand-in for libcudart."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from .build_cudart import cudart
from .objects import build_lock, compile_objects, cuda_include, link, nvcc

ROOT = Path(__file__).parents[3]
TORCH = Path(torch.__file__).parent
HERE = Path(__file__).parent


def architectures() -> list[str]:
    """``CAPMOE_EMULATED_ARCHS=80`` builds in half the time; sm_90 then runs the code of sm_80."""
    return os.environ.get("CAPMOE_EMULATED_ARCHS", "80,90a").split(",")


def nvcc_command(archs: list[str], compress: bool = False) -> list[str]:
    """PTX alone, as text: the emulator reads it out of the fat binary."""
    targets = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in archs]
    form = [] if compress else ["--no-compress"]
    return [
        *(nvcc(), "-std=c++17", "-lineinfo", "-cudart", "none", *form),
        *("-Xcompiler", "-fPIC", *targets),
    ]


def with_cudart() -> list[str]:
    library = cudart()
    return [str(library), f"-Wl,-rpath,{library.parent}", "-Wl,--no-undefined"]


def with_torch() -> list[str]:
    libraries = [f"-l{name}" for name in ("torch", "torch_cpu", "c10")]
    return [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-Wl,--no-as-needed", *libraries]


def build_library(sources: list[Path], archs=("80", "90a"), compress: bool = False) -> Path:
    """A library of ``.cu`` files, kernels and launchers, for ctypes.

    Raises:
        RuntimeError: there is no nvcc, or it refuses a source.
    """
    command = nvcc_command(list(archs), compress)
    with build_lock("extension"):
        objects = compile_objects(dict.fromkeys(sources, command))
        return link(objects, f"{sources[0].stem}.so", with_cudart())


@functools.cache
def build_torch_memory() -> Path:
    """What tells the stand-in of torch's allocations."""
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-Wall", "-isystem", str(TORCH / "include")]
    with build_lock("extension"):
        objects = compile_objects({HERE / "torch_memory.cpp": command})
        return link(objects, "torch_memory.so", [*with_cudart(), *with_torch()])


def binding_command(library: str) -> list[str]:
    """As CMakeLists.txt compiles the binding, but for CPU tensors and another operator library."""
    version = [int(part) for part in torch.__version__.split(".")[:2]]
    target = f"0x{version[0]:02x}{version[1]:02x}000000000000"
    return [
        *("g++", "-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden"),
        *("-isystem", str(TORCH / "include"), "-isystem", str(cuda_include())),
        *(f"-DTORCH_TARGET_VERSION={target}", "-DCAPMOE_EMULATED"),
        *(f"-DCAPMOE_LIBRARY={library}", "-DCAPMOE_KEY=CPU"),
    ]


def build_operators(kernels: list[Path], bindings: list[Path], library: str) -> Path:
    """A library that, when loaded, registers CUDA operators for CPU tensors under ``library``.

    Raises:
        RuntimeError: there is no nvcc, or a compiler refuses a source.
    """
    hidden = ["-Xcompiler", "-fvisibility=hidden"]
    commands = dict.fromkeys(kernels, nvcc_command(architectures()) + hidden)
    commands |= dict.fromkeys(bindings, binding_command(library))
    with build_lock("extension"):
        objects = compile_objects(commands)
        return link(objects, f"{library}.so", [*with_cudart(), *with_torch()])
