"""Which Mixture-of-Experts blocks are known, and where a model has them.

An architecture is one :class:`Architecture` in a file of its own (see ``olmoe.py``), registered
under the ``model_type`` of its Transformers configuration. What is not registered is looked for by
shape (see ``by_shape.py``).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .by_shape import find_by_shape
from .parts import Architecture, MoeBlock, MoeParts, OwnRouter

__all__ = [
    "Architecture",
    "MoeBlock",
    "MoeParts",
    "OwnRouter",
    "check_supported",
    "find_moe_blocks",
    "register",
    "supported",
]

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
        raise ValueError(_unknown(model_type))


def find_moe_blocks(model: nn.Module) -> list[MoeBlock]:
    """Every MoE block of a Transformers model, in the model's order.

    A known architecture is read whole, its router included; of any other model, the experts modules
    that fit by their shape are found. Nothing is changed, but for models of Transformers 4: there
    the weights of a block's experts move into one tensor, of which the model's parameters, still
    the same objects of the same values, become views (see ``expert_modules.py``).

    Raises:
        ValueError: the model has no MoE block that is understood; says what is known, or which
            setting of which block is not.
    """
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    architecture = _ARCHITECTURES.get(model_type)
    if architecture is None:
        try:
            return find_by_shape(model)
        except ValueError as error:
            raise ValueError(f"{_unknown(model_type)}; and by shape, {error}") from None
    blocks = [
        MoeBlock(name, module, _read(architecture, name, module, config))
        for name, module in model.named_modules()
        if type(module).__name__ in architecture.block_classes
    ]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no {' or '.join(architecture.block_classes)},"
            f" the MoE block of {model_type!r} models"
        )
    return blocks


def _read(architecture: Architecture, name: str, module: nn.Module, config: Any) -> MoeParts:
    try:
        architecture.check_origin(module)
        parts = architecture.read(module, config)
        parts.gating.check_experts(parts.experts.num_experts)
        return parts
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _unknown(model_type: str) -> str:
    return (
        f"model type {model_type!r} has no MoE blocks that capmoe_kernels knows;"
        f" it knows those of {', '.join(supported())}"
    )
