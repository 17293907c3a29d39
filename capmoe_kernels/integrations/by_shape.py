"""Experts of architectures that nobody has registered, found by the shape of Transformers 5.

There every experts module with the decorator ``use_experts_implementation`` has the same weights
and the same forward, which flags on it describe: so much is known without knowing the model. Its
router, its shared experts and what its block returns stay the model's own.
"""

from __future__ import annotations

import inspect

from torch import nn

from .expert_weights import FLAGS, read_experts
from .parts import MoeBlock, OwnRouter

_PARAMETERS = ["self", "hidden_states", "top_k_index", "top_k_weights"]


def find_by_shape(model: nn.Module) -> list[MoeBlock]:
    """Every experts module of ``model``, in its order.

    Raises:
        ValueError: there is none, or one does not fit; says which and why.
    """
    found = [
        MoeBlock(name, module, _read(name, module))
        for name, module in model.named_modules()
        if _holds_experts(module)
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no experts module of Transformers 5 (gate_up_proj or"
            " up_proj, and down_proj, of three dimensions)"
        )
    return found


def _holds_experts(module: nn.Module) -> bool:
    weights = module._parameters
    down, up = weights.get("down_proj"), weights.get("gate_up_proj", weights.get("up_proj"))
    return down is not None and up is not None and down.dim() == up.dim() == 3


def _read(name: str, module: nn.Module) -> OwnRouter:
    try:
        if "base_layer" in name.split("."):
            raise ValueError("PEFT changes its weights in every call: merge the adapter first")
        _check_call(module)
        return OwnRouter(read_experts(module))
    except ValueError as error:
        raise ValueError(f"{name} does not fit: {error}") from None


def _check_call(module: nn.Module) -> None:
    """Raise ValueError where ``module`` is not called as Transformers 5 calls its experts."""
    missing = [name for name in FLAGS if name not in vars(module)]
    if missing:
        raise ValueError(
            f"{type(module).__name__} must have {missing[0]}, as use_experts_implementation sets it"
        )
    parameters = list(inspect.signature(type(module).forward).parameters)
    if parameters != _PARAMETERS:
        raise ValueError(
            f"its forward must take {', '.join(_PARAMETERS[1:])}, got {', '.join(parameters[1:])}"
        )
