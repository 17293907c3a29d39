"""Compiled CUDA launchers, with their real ``<<<>>>``, on CPU tensors: a stand-in for libcudart."""

from .kernels import registered_kernels
from .libraries import open_library
from .memory import device_memory, raising_problems
from .record import LaunchRecord, Options, Record, emulation, recording
from .standin import library_path, load

__all__ = [
    "LaunchRecord",
    "Options",
    "Record",
    "device_memory",
    "emulation",
    "library_path",
    "load",
    "open_library",
    "raising_problems",
    "recording",
    "registered_kernels",
]
