"""The package's CUDA operators, compiled as they are, on CPU tensors through the emulator."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import shutil
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..arguments import Const
from .build_extension import ROOT, build_operators, build_torch_memory
from .libraries import open_library
from .memory import device_memory

LIBRARY = "capmoe_emulated"
KERNELS = ROOT / "csrc" / "cuda"
BINDING = ROOT / "csrc" / "bindings" / "cuda_ops.cpp"


def why_absent() -> str | None:
    """Why the CUDA operators cannot be emulated here; None where they can."""
    if shutil.which("nvcc") is None:
        return "there is no nvcc on PATH"
    missing = [path for path in (KERNELS, BINDING) if not path.exists()]
    return f"there is no {missing[0].relative_to(ROOT)}" if missing else None


def define(schema: torch.FunctionSchema, library: str) -> None:
    """Declares an operator of another library with the same arguments and results."""
    name = schema.name.split("::")[1]
    torch.library.define(f"{library}::{name}", str(schema)[len(schema.name) :])


@functools.cache
def load_operators() -> None:
    """Builds ``torch.ops.capmoe_emulated`` where a source has changed, and loads it."""
    from capmoe_kernels.ops import OPS

    for name in OPS:
        define(getattr(torch.ops.capmoe, name).default._schema, LIBRARY)
    open_library(build_operators(sorted(KERNELS.glob("*.cu")), [BINDING], LIBRARY))


@functools.cache
def _watcher() -> ctypes.CDLL:
    return open_library(build_torch_memory())


@contextlib.contextmanager
def new_tensors_are_device_memory() -> Iterator[None]:
    """Also those that C++ code allocates, for the length of the context."""
    _watcher().watch_allocations()
    try:
        yield
    finally:
        _watcher().watch_no_longer()


def run_operator(operator: torch._ops.OpOverload, *args, **kwargs):
    """Calls an operator that launches kernels; what its schema does not let it write is const.

    Raises:
        EmulationError: what the emulator found in its kernels.
    """
    names = [argument.name for argument in operator._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    tensors = []
    for argument in operator._schema.arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        for value in tree_leaves(given.get(argument.name)):
            if isinstance(value, torch.Tensor):
                tensors.append(value if written else Const(value))
    with device_memory(*tensors), new_tensors_are_device_memory():
        return operator(*args, **kwargs)


class UseEmulatedCuda(TorchDispatchMode):
    """Within it every capmoe op runs its CUDA kernels, whatever backend serves the device."""

    def __init__(self):
        super().__init__()
        load_operators()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "capmoe":
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        operator = getattr(getattr(torch.ops, LIBRARY), name).default
        return run_operator(operator, *args, **(kwargs or {}))
