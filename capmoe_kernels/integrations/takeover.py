"""Replacing the forward of a model's MoE blocks, and giving it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .padding import FollowedMasks
from .taken_over import TakenOver

# Kept on the model, so that a copy of a model that was taken over can be given back, too.
_ATTRIBUTE = "_capmoe_takeover"


class Takeover:
    """The blocks of one model that are taken over until :meth:`undo`.

    Attributes:
        layers: what runs in their places, in the model's order.
        token_masks: of each Transformers model around them; most have one.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[TakenOver],
        masks: FollowedMasks,
    ) -> None:
        """Put every layer in the place of its module's forward."""
        self.layers = list(layers)
        self.token_masks = masks.distinct
        self._model = model
        self._hooks = masks.hooks
        self._before: list[tuple[nn.Module, str, Any]] = []
        for layer in layers:
            name = forward_name(layer.module)
            self._before.append((layer.module, name, vars(layer.module).get(name)))
            # An attribute of the instance hides the method of the class, and undoes traceless.
            setattr(layer.module, name, layer.forward)
        vars(model)[_ATTRIBUTE] = self

    def undo(self) -> None:
        """Give every block its own forward back.

        Raises:
            RuntimeError: somebody else has replaced a forward since, and has to undo that first.
        """
        for layer in self.layers:
            name = forward_name(layer.module)
            if vars(layer.module).get(name) != layer.forward:
                raise RuntimeError(
                    f"the forward of {type(layer.module).__name__} was replaced again since apply:"
                    " undo that first"
                )
        for module, name, before in self._before:
            delattr(module, name)
            if before is not None:
                setattr(module, name, before)
        for hook in self._hooks:
            hook.remove()
        del vars(self._model)[_ATTRIBUTE]


def forward_name(module: nn.Module) -> str:
    """The attribute that is called: Accelerate moves inputs in a forward of its own."""
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"


def current_forward(module: nn.Module) -> Callable[..., Any]:
    forward: Callable[..., Any] = getattr(module, forward_name(module))
    return forward


def takeover_of(model: nn.Module) -> Takeover | None:
    """The takeover of ``model`` or of a model within it, such as the one that PEFT has wrapped."""
    for module in model.modules():
        if _ATTRIBUTE in vars(module):
            found: Takeover = vars(module)[_ATTRIBUTE]
            return found
    return None


def require_takeover(model: nn.Module) -> Takeover:
    takeover = takeover_of(model)
    if takeover is None:
        raise RuntimeError(f"{type(model).__name__} is not taken over: call apply first")
    return takeover
