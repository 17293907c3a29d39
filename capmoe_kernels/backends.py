"""Decides, once at import, which implementation serves each device.

The dispatcher is the fallback chain: the reference is registered for every device, and a kernel
registered for one device wins over it. ``CAPMOE_BACKENDS`` names the backends to consider; a GPU is
served by cuda if that was built, else by triton if that is installed, else by the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from .ops import OPS

_COMPILED = ("cpu", "cuda")
_KERNELS = (*_COMPILED, "triton")
_ENV = "CAPMOE_BACKENDS"


@dataclass(frozen=True)
class Backends:
    """What runs where, and why not something else.

    Attributes:
        serving: device type to the backend that serves it, e.g. ``{"cpu": "cpu"}``;
            ``"reference"`` is plain PyTorch.
        absent: backend to the reason it serves nothing; ``"cuda on cuda:1"`` where that is so on
            one GPU only.
    """

    serving: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{device}: {backend}" for device, backend in self.serving.items()]
        lines += [f"not {backend}: {reason}" for backend, reason in self.absent.items()]
        return "\n".join(lines)


def backends() -> Backends:
    """Which backend serves each device type, and why the others do not.

    Asks torch for the GPUs' compute capabilities, where there are any, so torch initialises CUDA.
    On a GPU that is too old the compiled ops raise; ``CAPMOE_BACKENDS=cpu`` leaves it to the
    reference.
    """
    state = Backends(dict(_STATE.serving), dict(_STATE.absent))
    if state.serving.get("cuda") == "cuda":
        _leave_out_old_gpus(state)
    return state


def _leave_out_old_gpus(state: Backends) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    capabilities = [torch.cuda.get_device_capability(device) for device in range(count)]
    reasons = {
        f"cuda:{device}": f"it has compute capability {major}.{minor}, the kernels need 8.0"
        for device, (major, minor) in enumerate(capabilities)
        if major < 8
    }
    if reasons and len(reasons) == count:
        del state.serving["cuda"]
        state.absent["cuda"] = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    else:
        state.absent.update({f"cuda on {name}": reason for name, reason in reasons.items()})


def _enabled() -> list[str]:
    names = [name.strip() for name in os.environ.get(_ENV, ",".join(_KERNELS)).split(",")]
    unknown = sorted({name for name in names if name} - {*_KERNELS, "reference"})
    if unknown:
        raise ValueError(
            f"{_ENV} must list some of cpu, cuda, triton, reference, got {', '.join(unknown)}"
        )
    return names


def _load(backend: str, enabled: list[str]) -> None:
    """Import a compiled backend, which registers itself. Not built is a reason; broken raises."""
    module = f"{__package__}._{backend}"
    if backend not in enabled:
        _STATE.absent[backend] = f"{_ENV} leaves it out"
    elif find_spec(module) is None:
        _STATE.absent[backend] = f"{module} was not built"
    else:
        import_module(module)
        _check_complete(module, backend.upper())
        _STATE.serving[backend] = backend


def _check_complete(module: str, key: str) -> None:
    """A backend implements every op or is not a backend; else ``backends()`` would lie."""
    missing = [
        op for op in OPS if not torch._C._dispatch_has_kernel_for_dispatch_key(f"capmoe::{op}", key)
    ]
    if missing:
        raise ImportError(f"{module} lacks {', '.join(missing)}: build it again")


def _without_gpu_support() -> None:
    """A module for CUDA loads beside any torch; without CUDA tensors it serves nobody."""
    built = _STATE.serving.pop("cuda") == "cuda"
    if built:
        _STATE.absent["cuda"] = "built, but this torch has no GPU support"
    elif _ENV not in _STATE.absent["cuda"]:
        _STATE.absent["cuda"] = "this torch has no GPU support"


def _why_not_triton(enabled: list[str], gpu_support: bool) -> str | None:
    """The reason for triton to serve nothing, None where it shall serve. Nothing is imported."""
    if "triton" not in enabled:
        return f"{_ENV} leaves it out"
    if not gpu_support:
        return "this torch has no GPU support"
    if _STATE.serving["cuda"] == "cuda":
        return "cuda serves"
    return "triton is not installed" if find_spec("triton") is None else None


def _load_triton() -> None:
    """Register the Triton kernels for GPUs: those of AMD have the dispatch key CUDA, too."""
    kernels = import_module(f"{__package__}.triton_kernels")
    for op in OPS:
        torch.library.impl(f"capmoe::{op}", "CUDA", _on_its_device(getattr(kernels, op)))
    _STATE.serving["cuda"] = "triton"


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, and an op's tensors may live on another one."""

    def kernel(first: torch.Tensor, *args: Any) -> Any:
        with torch.cuda.device(first.device):
            return function(first, *args)

    return kernel


_STATE = Backends({"cpu": "reference", "cuda": "reference"})
_ENABLED = _enabled()
for _name in _COMPILED:
    _load(_name, _ENABLED)
_GPU_SUPPORT = torch.version.cuda is not None or torch.version.hip is not None
if not _GPU_SUPPORT:
    _without_gpu_support()
_reason = _why_not_triton(_ENABLED, _GPU_SUPPORT)
if _reason is None:
    _load_triton()
else:
    _STATE.absent["triton"] = _reason
