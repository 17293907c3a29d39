"""The launchers of kernels/launchers.cu, compiled and called on tensors."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from . import runtime
from .arguments import Const
from .runtime.build_extension import build_library

SOURCE = Path(__file__).parent / "kernels" / "launchers.cu"


def _load(path: Path) -> ctypes.CDLL:
    loaded = runtime.open_library(path)
    loaded.name_of_error.restype = ctypes.c_char_p
    return loaded


@functools.cache
def library() -> ctypes.CDLL:
    return _load(build_library([SOURCE]))


def compressed() -> int:
    """A launch out of a fat binary whose PTX nvcc has compressed."""
    with runtime.raising_problems():
        return _load(build_library([SOURCE], compress=True)).launch_scale(
            None, ctypes.c_float(1), 1, 1
        )


def _argument(value):
    if isinstance(value, Const):
        value = value.tensor
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else value


def raw(name: str, *args) -> int:
    """Calls a launcher; its tensors are not device memory unless the caller has said so."""
    return getattr(library(), name)(*map(_argument, args))


def call(name: str, *args) -> int:
    """Calls a launcher; its tensors are device memory for the length of the call.

    Raises:
        EmulationError: what the emulator found.
    """
    tensors = [value for value in args if isinstance(value, torch.Tensor | Const)]
    with runtime.device_memory(*tensors):
        return raw(name, *args)
