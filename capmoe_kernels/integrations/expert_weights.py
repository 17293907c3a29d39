"""The weights of a model's experts: in Transformers 5, one tensor for all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..experts import Experts
from .expert_modules import read_expert_modules
from .reading import activation_of, plain_weight

# What ``use_experts_implementation`` notes on every experts module, and its defaults.
FLAGS = {
    "has_gate": True,
    "has_bias": False,
    "is_transposed": False,
    "is_concatenated": True,
    "has_post_expert_norm": False,
}


def read_experts(module: nn.Module) -> Experts:
    """Experts [E, 2F, H] and [E, H, F] of a module that computes them as Transformers does.

    Tensors are the module's own; where the module keeps them transposed, views of them. Those of
    Transformers 4's module lists: see :mod:`.expert_modules`.

    Raises:
        ValueError: a flag, the activation, the gate's formula or a weight is not understood.
    """
    if isinstance(module, nn.ModuleList):
        return read_expert_modules(module)
    flags = {name: getattr(module, name, default) for name, default in FLAGS.items()}
    _check_forward(module, flags)
    gated, transposed = bool(flags["has_gate"]), bool(flags["is_transposed"])
    up = "gate_up_proj" if gated else "up_proj"
    gate_up = expert_weight(module, up, transposed)
    down = expert_weight(module, "down_proj", transposed)
    biased = bool(flags["has_bias"])
    gate_up_bias = plain_weight(module, f"{up}_bias") if biased else None
    down_bias = plain_weight(module, "down_proj_bias") if biased else None
    activation: Any = activation_of(getattr(module, "act_fn", None), gated)
    return Experts(gate_up, down, gate_up_bias, down_bias, activation)


def expert_weight(module: nn.Module, name: str, transposed: bool) -> Tensor:
    """[E, out, in]; a view without a graph where the module keeps [E, in, out]."""
    weight = plain_weight(module, name)
    if weight.dim() != 3:
        raise ValueError(
            f"{type(module).__name__}.{name} must have three dimensions, got {list(weight.shape)}"
        )
    return weight.detach().transpose(1, 2) if transposed else weight


def check_one_process(module: nn.Module) -> None:
    """Raise ValueError where the experts are dealt out to several processes."""
    if getattr(module, "_is_expert_parallel", False):
        raise ValueError(
            f"{type(module).__name__} must hold all experts, it is under expert parallelism"
        )


def _check_forward(module: nn.Module, flags: dict[str, Any]) -> None:
    check_one_process(module)
    if flags["has_post_expert_norm"]:
        raise ValueError("has_post_expert_norm must be False: the kernels have no norm there")
    if not flags["has_gate"]:
        return
    own_gate = getattr(type(module), "_apply_gate", None)
    name = getattr(own_gate, "__qualname__", "_default_apply_gate")
    if name != "_default_apply_gate" or "_apply_gate" in vars(module):
        raise ValueError(f"_apply_gate must be the default of Transformers, got {name}")
    if not flags["is_concatenated"]:
        raise ValueError("is_concatenated must be True with the default _apply_gate, got False")
