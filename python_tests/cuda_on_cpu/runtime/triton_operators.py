"""The package's Triton operators on CPU tensors: what Triton compiles for a GPU, emulated."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from torch.utils._python_dispatch import TorchDispatchMode


def why_absent() -> str | None:
    """Why the Triton operators cannot be emulated here; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    return "there is no g++ on PATH" if shutil.which("g++") is None else None


class UseEmulatedTriton(TorchDispatchMode):
    """Within it every capmoe op runs its Triton kernels, whatever backend serves the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "capmoe":
            return func(*args, **(kwargs or {}))
        from capmoe_kernels import triton_kernels  # which imports Triton

        from .triton_launch import triton_emulation

        with triton_emulation():
            function = getattr(triton_kernels, func.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))
