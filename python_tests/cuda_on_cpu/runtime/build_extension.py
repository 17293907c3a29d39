"""Compiles CUDA files, kernels and launchers, into a library that calls the stand-in."""

from __future__ import annotations

from pathlib import Path

from ..build import CACHE
from .build_cudart import cudart
from .objects import build_lock, compile_objects, link, nvcc

# PTX alone, as text: the emulator reads it out of the fat binary.
ARCHITECTURES = ("compute_80", "compute_90a")


def nvcc_command(compress: bool = False) -> list[str]:
    targets = [f"-gencode=arch={name},code={name}" for name in ARCHITECTURES]
    form = [] if compress else ["--no-compress"]
    return [
        *(nvcc(), "-std=c++17", "-O2", "-lineinfo", "-cudart", "none", *form),
        *("-Xcompiler", "-fPIC", *targets),
    ]


def link_options() -> list[str]:
    library = cudart()
    return [str(library), f"-Wl,-rpath,{library.parent}", "-Wl,--no-undefined"]


def build_library(sources: list[Path], compress: bool = False) -> Path:
    """A library of the given ``.cu`` files, for ctypes.

    Raises:
        RuntimeError: there is no nvcc, or it refuses a source.
    """
    command = nvcc_command(compress)
    with build_lock("extension"):
        CACHE.mkdir(parents=True, exist_ok=True)
        objects = compile_objects(dict.fromkeys(sources, command))
        return link(objects, f"{sources[0].stem}.so", link_options())
