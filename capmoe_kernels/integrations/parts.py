"""What a Mixture-of-Experts block is made of, in this package's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..experts import Experts
from ..gating import Gating


@dataclass(frozen=True, eq=False)
class MoeParts:
    """What a block is made of.

    Its functions are modules, functions of a file, or ``functools.partial`` of one with modules: a
    copy of the model then has functions of its own, which a closure would not.

    Attributes:
        gating: how its router chooses.
        router_logits: tokens [T, H] to logits [T, E], computed as the model itself does, dtype
            included.
        experts: its E experts; the model's own tensors, not copies.
        selection_bias: gives what is added to the scores for ranking, [E] float32; it is asked at
            every call, since a model may change it.
        shared: tokens [T, H] to what the block adds to its experts' output, such as a shared
            expert.
        wrap: (output, router logits) to what the block's forward returns; None: the output alone.
    """

    gating: Gating
    router_logits: Callable[[Tensor], Tensor]
    experts: Experts
    selection_bias: Callable[[], Tensor] | None = None
    shared: Callable[[Tensor], Tensor] | None = None
    wrap: Callable[[Tensor, Tensor], Any] | None = None


@dataclass(frozen=True, eq=False)
class OwnRouter:
    """Experts behind a router that stays the model's own.

    The module that holds them is called with hidden states [T, H], top-k ids [T, k] and their
    weights [T, k], as Transformers 5 calls every experts module, and returns [T, H].

    Attributes:
        experts: as in :class:`MoeParts`.
    """

    experts: Experts


@dataclass(frozen=True)
class Architecture:
    """How to find and read the MoE blocks of one model family.

    Attributes:
        model_type: of the Transformers configuration.
        block_class: class name of the blocks, or several; their forward takes [B, S, H].
        read: (block, configuration) to its parts; raises ValueError where a setting is unknown.
        package: where the blocks' forward must have been written. A checkpoint's own code often has
            a class of the same name that computes something else.
    """

    model_type: str
    block_class: str | tuple[str, ...]
    read: Callable[[nn.Module, Any], MoeParts]
    package: str = "transformers"

    @property
    def block_classes(self) -> tuple[str, ...]:
        return (self.block_class,) if isinstance(self.block_class, str) else self.block_class

    def check_origin(self, block: nn.Module) -> None:
        """Raise ValueError where the forward of ``block``'s class is not of :attr:`package`."""
        kind = next(each for each in type(block).__mro__ if "forward" in vars(each))
        if f"{kind.__module__}.".startswith(f"{self.package}."):
            return
        raise ValueError(
            f"its class must be {self.package}' own, got {kind.__name__} of {kind.__module__},"
            " which may compute something else: load the model without trust_remote_code"
        )


@dataclass(frozen=True, eq=False)
class MoeBlock:
    """One block of one model: the module whose forward is replaced, and what it is made of."""

    name: str
    module: nn.Module
    parts: MoeParts | OwnRouter
