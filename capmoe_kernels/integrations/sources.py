"""What was read of a block, and whether the block is still the one that it was read from.

A model's weights may be replaced after ``apply``: by ``load_state_dict(assign=True)``, ``.to()``,
an adapter, or a hook that moves them away. Nothing of what was read before may then be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..experts import Experts
from .blocks import MoeBlock, find_moe_blocks
from .refusals import check_adapters, check_placement


class Sources:
    """The modules and parameters of one block.

    Attributes:
        expired: set where they are known to have been written.
    """

    def __init__(self, module: nn.Module, experts: Experts) -> None:
        """``experts`` are what runs in ``module``: its own tensors, or copies of them."""
        self._modules = [
            (parent, name, child)
            for parent in module.modules()
            for name, child in parent._modules.items()
        ]
        self._parameters = [
            (parent, name, parameter)
            for parent in module.modules()
            for name, parameter in parent._parameters.items()
        ]
        self.expired = False
        own = {id(parameter) for _, _, parameter in self._parameters}
        self.are_shared = all(id(tensor) in own for tensor in _tensors(experts))
        # Of its own tensors it sees every change of values; of copies that has to be looked for.
        self._states = [] if self.are_shared else [_state(p) for _, _, p in self._parameters]

    def unchanged(self) -> bool:
        for parent, name, child in self._modules:
            if parent._modules.get(name) is not child:
                return False
        for parent, name, parameter in self._parameters:
            if parent._parameters.get(name) is not parameter:
                return False
        if self.are_shared:
            return True
        if self.expired or torch.compiler.is_compiling():
            return not self.expired
        return self._states == [_state(parameter) for _, _, parameter in self._parameters]

    def requires_grad(self) -> bool:
        return any(p is not None and p.requires_grad for _, _, p in self._parameters)


@dataclass(frozen=True, eq=False)
class Reading:
    """A block as it was read.

    Attributes:
        block: what it is made of.
        experts: its experts as they run.
        sources: what they were made from.
    """

    block: MoeBlock
    experts: Experts
    sources: Sources


def prepare(block: MoeBlock, pack: bool) -> Reading:
    """``block`` with experts as the kernels like them: packed, or at least dense."""
    with torch.no_grad():
        experts = block.parts.experts
        experts = experts.pack() if pack else experts.concat()
    return Reading(block, experts, Sources(block.module, experts))


def unread(block: MoeBlock) -> Reading:
    """``block`` as the model has it, for who does not run its experts."""
    return Reading(block, block.parts.experts, Sources(block.module, block.parts.experts))


def read_again(name: str, module: nn.Module, config: Any, pack: bool) -> Reading:
    """Read ``module``, the MoE block ``name`` of a model with ``config``, by itself.

    Raises:
        ValueError: it has become a block that is not understood or not supported.
    """
    alone: Any = nn.Module()
    alone.config, alone.block = config, module
    check_adapters(alone, name)
    try:
        (found,) = find_moe_blocks(alone)
    except ValueError as error:
        raise ValueError(f"{name} has changed since it was taken over: {error}") from None
    block = MoeBlock(name, module, found.parts)
    check_placement(block)
    return prepare(block, pack)


def _tensors(experts: Experts) -> Iterator[Tensor]:
    biases = (experts.gate_up_bias, experts.down_bias)
    yield from (experts.gate_up_proj, experts.down_proj)
    yield from (bias for bias in biases if bias is not None)


def _state(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """What differs after a tensor was written, moved or converted (not after a write to .data)."""
    if tensor is None:
        return None
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.device, version
