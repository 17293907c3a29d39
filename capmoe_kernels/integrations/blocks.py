"""Which Mixture-of-Experts blocks are known, and how each is read into this package's terms.

An architecture is one :class:`Architecture` in a file of its own (see ``olmoe.py``), registered
under the ``model_type`` of its Transformers configuration.
"""

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
        top_k: k.
    """

    experts: Experts
    top_k: int


@dataclass(frozen=True)
class Architecture:
    """How to find and read the MoE blocks of one model family.

    Attributes:
        model_type: of the Transformers configuration.
        block_class: class name of the blocks; their forward takes [B, S, H] and returns [B, S, H].
        read: (block, configuration) to its parts.
    """

    model_type: str
    block_class: str
    read: Callable[[nn.Module, Any], MoeParts]


@dataclass(frozen=True, eq=False)
class MoeBlock:
    """One block of one model: the module whose forward is replaced, and what it is made of."""

    name: str
    module: nn.Module
    parts: MoeParts | OwnRouter


_ARCHITECTURES: dict[str, Architecture] = {}


def register(architecture: Architecture) -> None:
    """Make an architecture known; a later one of the same ``model_type`` replaces it."""
    _ARCHITECTURES[architecture.model_type] = architecture


def supported() -> list[str]:
    """The known ``model_type`` values, sorted."""
    return sorted(_ARCHITECTURES)


def check_supported(model_type: str) -> None:
    """Raise ValueError, listing what is known, where ``model_type`` is not."""
    if model_type not in _ARCHITECTURES:
        raise ValueError(
            f"model type {model_type!r} has no MoE blocks that capmoe_kernels knows;"
            f" it knows those of {', '.join(supported())}"
        )


def find_moe_blocks(model: nn.Module) -> list[MoeBlock]:
    """Every MoE block of a Transformers model, in the model's order.

    Raises:
        ValueError: the architecture is unknown or the model has no MoE block.
    """
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    check_supported(model_type)
    architecture = _ARCHITECTURES[model_type]
    blocks = [
        MoeBlock(name, module, architecture.read(module, config))
        for name, module in model.named_modules()
        if type(module).__name__ == architecture.block_class
    ]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no {architecture.block_class},"
            f" the MoE block of {model_type!r} models"
        )
    return blocks
