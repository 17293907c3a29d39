"""Replacing the forward of a model's MoE blocks, and giving it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import nn

from ..capacity import Capacity
from .padding import FollowedMasks
from .taken_over import TakenOver, Watched

# Kept on the Transformers model itself, not on what PEFT or the like has wrapped it in: so it is
# found from either, and a copy of the model can be given back, too.
_ATTRIBUTE = "_capmoe_takeover"


class Takeover:
    """The blocks of one model that are taken over until :meth:`undo`.

    Attributes:
        layers: what runs in their places, in the model's order.
        token_masks: of each Transformers model around them; most have one.
    """

    def __init__(self, layers: Sequence[TakenOver], masks: FollowedMasks) -> None:
        """Put every layer in the place of its module's forward."""
        self.layers = list(layers)
        self.token_masks = masks.distinct
        self._models = masks.models
        self._hooks = list(masks.hooks)
        self._before: list[Callable[..., Any] | None] = []
        for layer in layers:
            name = forward_name(layer.module)
            self._before.append(_not_of_the_class(layer.module, vars(layer.module).get(name)))
            # An attribute of the instance hides the method of the class, and undoes traceless.
            setattr(layer.module, name, layer.forward)
            module: Any = layer.module
            self._hooks.append(module.register_load_state_dict_post_hook(layer.loaded))
        for model in self._models:
            vars(model)[_ATTRIBUTE] = self

    def bound(
        self, capacities: Sequence[Capacity | None], decode: Sequence[Capacity | None]
    ) -> None:
        """Bound every layer by its own."""
        for layer, *pair in zip(self.layers, capacities, decode, strict=True):
            layer.capacity, layer.decode = pair

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of the model, whose blocks are whole by now, has parts of its own to be read."""
        vars(self).update(state)
        for layer in self.layers:
            if not isinstance(layer, Watched):
                layer.read_again()

    def check_undo(self) -> None:
        """Raise RuntimeError where somebody else has replaced a forward since: undo that first."""
        for layer in self.layers:
            if vars(layer.module).get(forward_name(layer.module)) != layer.forward:
                raise RuntimeError(
                    f"the forward of {type(layer.module).__name__} was replaced again since apply:"
                    " undo that first"
                )

    def undo(self) -> None:
        """Give every block its own forward back; see :meth:`check_undo`."""
        self.check_undo()
        for layer, before in zip(self.layers, self._before, strict=True):
            _give_back(layer.module, before)
        for hook in self._hooks:
            hook.remove()
        for model in self._models:
            del vars(model)[_ATTRIBUTE]
            for module in model.modules():  # copies of blocks that others have put there since
                taken = vars(module).get("forward")
                if isinstance(getattr(taken, "__self__", None), TakenOver):
                    delattr(module, "forward")


def forward_name(module: nn.Module) -> str:
    """The attribute that is called: Accelerate moves inputs in a forward of its own."""
    hooked = hasattr(module, "_hf_hook") and "_old_forward" in vars(module)
    return "_old_forward" if hooked else "forward"


def current_forward(module: nn.Module) -> Callable[..., Any]:
    forward: Callable[..., Any] = getattr(module, forward_name(module))
    return forward


def takeovers_of(model: nn.Module) -> list[Takeover]:
    """The takeovers of ``model`` and of models within it, such as the one that PEFT has wrapped."""
    found: list[Takeover] = []
    for module in model.modules():
        takeover = vars(module).get(_ATTRIBUTE)
        if takeover is not None and takeover not in found:
            found.append(takeover)
    return found


def require_takeover(model: nn.Module) -> Takeover:
    """The takeover of ``model``.

    Raises:
        RuntimeError: there is none, or there are several.
    """
    takeovers = takeovers_of(model)
    if not takeovers:
        raise RuntimeError(f"{type(model).__name__} is not taken over: call apply first")
    if len(takeovers) > 1:
        raise RuntimeError(
            f"{type(model).__name__} holds {len(takeovers)} models that were taken over one by one:"
            " name one of them, or apply to the whole"
        )
    return takeovers[0]


def _not_of_the_class(module: nn.Module, forward: Any) -> Callable[..., Any] | None:
    """``forward``, or None where it is no more than the bound method of the module's class."""
    own = getattr(forward, "__func__", None) is type(module).forward
    found: Callable[..., Any] | None = None if own else forward
    return found


def _give_back(module: nn.Module, before: Callable[..., Any] | None) -> None:
    """Accelerate may have come or gone since: what is called now gets its forward back."""
    name = forward_name(module)
    if before is not None:
        setattr(module, name, before)
    elif name == "forward":
        delattr(module, name)
    else:
        setattr(module, name, MethodType(type(module).forward, module))
