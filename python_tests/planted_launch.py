"""The launchers of csrc/cuda, with their ``<<<>>>``, on CPU tensors.

``planted_launchers.cu`` makes them callable; the stand-in for libcudart runs what they launch.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from cuda_on_cpu import Const, runtime
from cuda_on_cpu.runtime.build_extension import build_library
from cuda_sources import folder, per_sources

CALLS = Path(__file__).parent / "planted_launchers.cu"
SOURCES = ("dispatch", "combine", "mark", "gate_wide", "grouped_mlp")


@per_sources
def library() -> ctypes.CDLL:
    """Of these sources, of which only the one with a bug is compiled again."""
    sources = [folder() / f"{name}.cu" for name in SOURCES]
    loaded = runtime.open_library(build_library([*sources, CALLS], archs=("80",)))
    loaded.message_of_failure.restype = ctypes.c_char_p
    return loaded


def _argument(value):
    if isinstance(value, Const):
        value = value.tensor
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return None if value is None else ctypes.c_int64(value)


def failure_of(name: str, *args) -> str:
    """Calls a launcher. -> what it threw, '' for nothing"""
    failed = getattr(library(), name)(*map(_argument, args))
    return library().message_of_failure().decode() if failed else ""


def launch(name: str, *args, seed: int = 0) -> None:
    """Calls a launcher; its tensors are device memory for the length of the call.

    Raises:
        EmulationError: what the emulator found.
        AssertionError: a warning, or the launcher threw though the emulator found nothing.
    """
    tensors = [value for value in args if isinstance(value, torch.Tensor | Const)]
    with runtime.recording(seed=seed) as record, runtime.device_memory(*tensors):
        failure = failure_of(name, *args)
    assert failure == ""
    assert record.warnings == []
