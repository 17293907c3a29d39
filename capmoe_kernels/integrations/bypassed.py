"""What others have put into a block, and a block that is taken over would go past in silence.

Such a block does not call its router and its experts: it computes with their weights. A forward
hook on one of them would never run, nor a forward that somebody has given one, or the block itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from .blocks import MoeBlock
from .taken_over import TakenOver
from .takeover import forward_name

# Whose hooks and forwards collect outputs or move tensors, which is as well without them.
_HARMLESS = ("transformers.", "accelerate.")


def check_calls(blocks: Sequence[MoeBlock]) -> None:
    """Refuse hooks and forwards that blocks taken over would not call.

    Hooks on a block itself run, and shared experts are called as ever.

    Raises:
        ValueError: names the module.
    """
    for block in blocks:
        for path, module in block.module.named_modules():
            if path.startswith("shared"):
                continue
            name = ".".join(part for part in (block.name, path) if part)
            if _is_replaced(module):
                raise ValueError(
                    f"the forward of {name} was replaced by another, which a block taken over does"
                    " not call: give it back its own first"
                )
            if path and any(not _is_harmless(hook) for hook in _hooks(module)):
                raise ValueError(
                    f"{name} has a forward hook, which a block taken over does not call: remove it"
                    " first, or hook the block itself"
                )


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _is_replaced(module: nn.Module) -> bool:
    forward = _inner(vars(module).get(forward_name(module)))
    if forward is None or isinstance(getattr(forward, "__self__", None), TakenOver):
        return False
    own = getattr(forward, "__func__", None) is type(module).forward
    return not (own or _is_harmless(forward) or _is_kernel(module, forward))


def _is_kernel(module: nn.Module, forward: Any) -> bool:
    """Whether it is the method of a layer that the package kernels has put there."""
    known = hasattr(type(module), "kernel_layer_name")
    return known and isinstance(forward, MethodType) and forward.__qualname__.endswith(".forward")


def _is_harmless(call: Any) -> bool:
    function = _inner(call)
    function = getattr(function, "__func__", function)
    if isinstance(function, FunctionType):  # its __module__ is what functools.wraps has copied
        return str(function.__globals__.get("__name__")).startswith(_HARMLESS)
    return type(function).__module__.startswith(_HARMLESS)


def _inner(call: Any) -> Any:
    """What ``torch.compile`` or ``functools.partial`` was given."""
    while True:
        if isinstance(call, functools.partial):
            call = call.func
        elif hasattr(call, "_torchdynamo_orig_callable"):
            call = call._torchdynamo_orig_callable
        else:
            return call
