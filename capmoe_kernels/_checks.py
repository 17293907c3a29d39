"""The border: what a public function refuses, in words that name the argument and what it wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int32, torch.int64)


def require_int(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < minimum or (maximum is not None and value > maximum):
        wanted = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def require_finite(name: str, value: Any, *, above: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not above < value <= most:  # false for NaN, too
        raise ValueError(f"{name} must be > {above:g} and at most {most:g}, got {value}")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def require_range(name: str, value: Any) -> None:
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"{name} must be a tuple (start, stop), got {value!r}")
    require_int(f"{name}[0]", value[0], minimum=0)
    require_int(f"{name}[1]", value[1], minimum=0)
    if value[1] < value[0]:
        raise ValueError(f"{name} must have start <= stop, got {value}")


def require_tensor(
    name: str,
    value: Any,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
    meaning: str = "",
) -> None:
    """``shape``: the sizes it must have, None where any will do; ``meaning``: their names."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    fits = value.dim() == len(shape)
    for i, size in enumerate(shape):
        fits = fits and (size is None or value.shape[i] == size)
    if not fits:  # words are made only here: a compiler traces the rest
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        wanted = f"{wanted} ({meaning})" if meaning else wanted
        raise ValueError(f"{name} must have shape {wanted}, got {list(value.shape)}")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {names}, got {str(value.dtype).removeprefix('torch.')}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors, got {value.device}")


def require_inference(**tensors: Tensor | None) -> None:
    """Raise where autograd would record: the kernels have no backward yet."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise RuntimeError(
                f"{name} requires grad, but capmoe_kernels is inference-only:"
                " call it under torch.no_grad() or torch.inference_mode()"
            )


def readable(tensor: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device or breaking a graph."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not isinstance(tensor, FakeTensor) and get_proxy_mode() is None


def require_number(name: str, tensor: Tensor, token_mask: Tensor | None = None) -> None:
    """Raise where a real token's row holds NaN or +inf. -inf passes: it forbids an expert.

    Looks only at CPU tensors in eager mode; elsewhere that would wait for the device, and the ops
    themselves define what such a value does (NaN: as -inf; +inf: as the largest float).
    """
    if not readable(tensor) or tensor.numel() == 0 or tensor.max().item() < math.inf:
        return  # the maximum of what holds a NaN is NaN, which is not below
    bad = ~(tensor < math.inf)
    if token_mask is not None:
        bad = bad & token_mask.view(-1, *[1] * (bad.dim() - 1))
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must hold numbers below inf, got {tensor[where].item()} at {list(where)}"
        )
