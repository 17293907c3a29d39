"""The layer inside ``jax.jit``, on the CPU: the functions of capmoe_kernels, under the same names.

    import capmoe_kernels as cm, capmoe_kernels.integrations.jax as cmj

    @jax.jit
    def layer(hidden_states, router_logits, experts):
        return cmj.moe(hidden_states, router_logits, experts, cm.Gating(8), cm.Capacity(1.5))

Outside of ``jax.jit`` they are the functions themselves. Importing this module makes
:class:`~capmoe_kernels.Experts`, packed or not, a pytree: pass it to a jitted function as an
argument. A :class:`~capmoe_kernels.Routing` is one anyway. ``jax.vmap`` runs one call after the
other, each with a capacity of its own; there are no gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

import capmoe_kernels as cm

from .._checks import require_inference
from ..arrays import is_foreign, is_traced, to_tensor
from ..experts import WEIGHTS, Activation, Experts, Layout
from ..packed_experts import PackedExperts
from . import xla_ffi

P = ParamSpec("P")
R = TypeVar("R")

_SETTINGS = ("activation", "layout", "sizes")  # the last one of packed experts only


def _traceable(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which where JAX is tracing becomes a call in the program."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, tree = jax.tree.flatten((args, kwargs))
        if not any(map(is_traced, leaves)):
            return function(*args, **kwargs)
        traced: R = _trace(function, leaves, tree)
        return traced

    return wrapper


def _trace(function: Callable[..., Any], leaves: list[Any], tree: Any) -> Any:
    """The call of ``function``; its shapes are those of the same call without numbers."""
    places = [i for i, leaf in enumerate(leaves) if is_foreign(leaf) or isinstance(leaf, Tensor)]
    settings = [None if i in places else leaf for i, leaf in enumerate(leaves)]

    def run(*tensors: Tensor) -> Any:
        filled = list(settings)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = jax.tree.unflatten(tree, filled)
        return function(*args, **kwargs)

    shapes, results = jax.tree.flatten(run(*(_shape_of(leaves[i]) for i in places)))
    declared = [_declared(x) for x in shapes]
    out = xla_ffi.call(
        f"{function.__name__} {settings} {tree}",
        lambda *tensors: jax.tree.leaves(run(*tensors)),
        declared,
        [_to_jax(leaves[i]) for i in places],
    )
    return jax.tree.unflatten(results, out)


def _shape_of(array: Any) -> Tensor:
    """A tensor like ``array`` without memory."""
    name = str(array.dtype).removeprefix("torch.")
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise TypeError(f"arrays of {name} are not taken: torch does not have them")
    return torch.empty(array.shape, dtype=dtype, device="meta")


def _declared(tensor: Tensor) -> jax.ShapeDtypeStruct:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return jax.ShapeDtypeStruct(tensor.shape, dtype)  # type: ignore[no-untyped-call]


def _to_jax(array: Any) -> Any:
    """A tensor's memory as a JAX array, a copy where it has gaps; anything else as it is."""
    return jnp.from_dlpack(array.detach().contiguous()) if isinstance(array, Tensor) else array


def make_experts(
    gate_up_proj: Any,
    down_proj: Any,
    gate_up_bias: Any = None,
    down_bias: Any = None,
    activation: Activation = "silu",
    layout: Layout = "concat",
) -> Experts:
    """:class:`~capmoe_kernels.Experts`, for a jitted function whose arguments are the weights.

    Args, Raises:
        as of Experts.
    """
    weights = (gate_up_proj, down_proj, gate_up_bias, down_bias)
    traced = any(map(is_traced, weights))
    given: Any = [x if x is None or not traced else _shape_of(x) for x in weights]
    named = dict(zip(WEIGHTS, given, strict=True))
    experts = Experts(**named, activation=activation, layout=layout)
    return _unflatten(Experts, _settings(experts), weights) if traced else experts


def _flatten(experts: Experts) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    weights = {name: getattr(experts, name) for name in WEIGHTS}
    tensors = {name: x for name, x in weights.items() if isinstance(x, Tensor)}
    require_inference(**{f"Experts.{name}": tensor for name, tensor in tensors.items()})
    return tuple(_to_jax(weight) for weight in weights.values()), _settings(experts)


def _settings(experts: Experts) -> tuple[Any, ...]:
    return tuple(getattr(experts, name) for name in _SETTINGS if hasattr(experts, name))


def _unflatten(kind: type[Experts], settings: tuple[Any, ...], weights: Any) -> Experts:
    """Experts of torch tensors, unless the weights hold no numbers: JAX's stand-ins for arrays."""
    named = dict(zip(WEIGHTS, weights, strict=True))
    named.update(zip(_SETTINGS, settings, strict=False))
    if all(x is None or isinstance(x, Tensor) or _is_array(x) for x in weights):
        for name in WEIGHTS:
            if is_foreign(named[name]):
                named[name] = to_tensor(f"Experts.{name}", named[name])
        return kind(**named)
    experts = object.__new__(kind)
    for name, value in named.items():
        object.__setattr__(experts, name, value)
    return experts


def _is_array(weight: Any) -> bool:
    """Whether it holds numbers: JAX's or, as a restored checkpoint has them, NumPy's."""
    return is_foreign(weight) and not is_traced(weight)


for _kind in (Experts, PackedExperts):
    jax.tree_util.register_pytree_node(_kind, _flatten, functools.partial(_unflatten, _kind))

route = _traceable(cm.route)
select = _traceable(cm.select)
dispatch = _traceable(cm.dispatch)
grouped_mlp = _traceable(cm.grouped_mlp)
combine = _traceable(cm.combine)
moe = _traceable(cm.moe)

__all__ = ["combine", "dispatch", "grouped_mlp", "make_experts", "moe", "route", "select"]
