"""Reading a model's modules strictly: what is not as expected is refused by name, never guessed."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import FLOATS

# Functions and classes that compute an activation, by name, and the packages they come from.
_HOMES = ("torch.", "transformers.activations")
_GATED = {
    "silu": "silu",
    "gelu": "gelu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",  # the same formula, written out
}
_PLAIN = _GATED | {"relu": "relu", "ReLU": "relu", "ReLUSquaredActivation": "relu2"}


def setting(module: nn.Module, *names: str, block: nn.Module | None = None) -> Any:
    """The first of the attributes ``names`` that ``module`` has, or else ``block`` around it.

    Raises:
        ValueError: neither has any of them.
    """
    for holder in (module, block):
        for name in names:
            if hasattr(holder, name):
                return getattr(holder, name)
    raise ValueError(f"{type(module).__name__} must have {names[0]}, by which it routes")


def require_setting(name: str, value: Any, known: Collection[Any]) -> None:
    """Raise ValueError where a setting has a value that the kernels don't compute."""
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")


def plain_weight(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter ``name`` of ``module``.

    Raises:
        ValueError: it is quantised, wrapped, sharded or not there.
    """
    weight = module._parameters.get(name)
    if type(weight) is nn.Parameter and weight.dtype in FLOATS:
        return weight
    found = "none" if weight is None else f"{type(weight).__name__} of {weight.dtype}"
    raise ValueError(
        f"{type(module).__name__}.{name} must be a parameter of float32, bfloat16 or float16,"
        f" neither quantised nor wrapped nor sharded, got {found}"
    )


def activation_of(act_fn: Any, gated: bool = True) -> str:
    """The :data:`~capmoe_kernels.experts.Activation` that a module of Transformers computes.

    Raises:
        ValueError: none of them; names ``hidden_act``, by which configurations choose it.
    """
    kind = act_fn if inspect.isroutine(act_fn) else type(act_fn)
    known = _GATED if gated else _PLAIN
    found = known.get(kind.__name__)
    if found is None or not str(kind.__module__).startswith(_HOMES):
        kinds = ", ".join(sorted(set(known.values())))
        raise ValueError(f"hidden_act must be one of {kinds}, got {kind.__name__}")
    return found + ("" if gated else "_no_mul")


def linear_logits(router: nn.Module, tokens: Tensor) -> Tensor:
    """[T, E] in the tokens' dtype."""
    weight: Any = router.weight
    return F.linear(tokens, weight)


def float32_logits(router: nn.Module, tokens: Tensor) -> Tensor:
    """[T, E] float32, as DeepSeek's routers compute whatever the model's dtype."""
    weight: Any = router.weight
    return F.linear(tokens.float(), weight.float())


def with_logits(output: Tensor, router_logits: Tensor) -> tuple[Tensor, Tensor]:
    """What the blocks of Transformers 4 return."""
    return output, router_logits
