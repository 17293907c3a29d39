"""Experts' weights as the CPU's kernels read them: what ``Experts.pack`` returns there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import require_choice, require_inference
from .experts import Activation, Experts
from .ops import run


@dataclass(frozen=True, eq=False)
class PackedExperts(Experts):
    """A copy of E experts' weights, sixteen rows side by side; made by :meth:`Experts.pack`.

    It serves wherever :class:`Experts` does, on CPU tensors. Later changes of the weights that it
    was made of don't reach it.

    Attributes:
        gate_up_proj: [E, blocks, H rounded up, 16].
        down_proj: [E, blocks, F rounded up, 16].
        gate_up_bias: [E, 2 * (F rounded up to 16)], gate then up (half as many for a plain MLP).
        layout: ``"packed"``.
    """

    sizes: tuple[int, int, int] = field(default=(0, 0, 0), kw_only=True)  # E, H, F

    def __post_init__(self) -> None:
        if self.sizes == (0, 0, 0):
            raise TypeError("PackedExperts is made by Experts.pack()")
        require_choice("PackedExperts.activation", self.activation, get_args(Activation))
        require_choice("PackedExperts.layout", self.layout, ("packed",))

    @property
    def num_experts(self) -> int:
        return self.sizes[0]

    @property
    def hidden_size(self) -> int:
        return self.sizes[1]

    @property
    def intermediate_size(self) -> int:
        return self.sizes[2]

    def pack(self) -> Experts:
        return self

    def concat(self) -> Experts:
        raise TypeError("packed experts are not turned back: keep those that they were made of")


def pack(experts: Experts) -> PackedExperts:
    """Copies the weights; an expert at a time, so that no third copy of all is ever there.

    Raises:
        RuntimeError: a weight requires grad, outside ``torch.no_grad()``.
    """
    names = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")
    require_inference(**{f"Experts.{name}": getattr(experts, name) for name in names})
    halves = 2 if experts.is_gated else 1
    bias = experts.gate_up_bias
    if bias is not None:
        bias = _padded_bias(experts.concat_bias(bias), halves)
    weights: Any = {
        "gate_up_proj": _packed(experts.gate_up_proj, experts.is_gated, experts.layout),
        "down_proj": _packed(experts.down_proj, False, "concat"),
        "gate_up_bias": bias,
        "down_bias": None if experts.down_bias is None else _copy(experts.down_bias),
    }
    sizes = experts.num_experts, experts.hidden_size, experts.intermediate_size
    return PackedExperts(**weights, activation=experts.activation, layout="packed", sizes=sizes)


def _packed(weights: Tensor, gated: bool, layout: str) -> Tensor:
    """What strides make costly to read is made dense one expert at a time."""
    packed: Tensor
    if weights.is_contiguous():
        packed = run("pack", weights, gated, layout)
        return packed
    first = run("pack", weights[:1].contiguous(), gated, layout)
    packed = first.new_empty(weights.shape[0], *first.shape[1:])
    packed[0] = first[0]
    for expert in range(1, weights.shape[0]):
        packed[expert] = run("pack", weights[expert, None].contiguous(), gated, layout)[0]
    return packed


def _padded_bias(bias: Tensor, halves: int) -> Tensor:
    rows = bias.shape[1] // halves
    padded = F.pad(bias.view(-1, halves, rows), (0, -rows % 16))
    return _copy(padded.flatten(1))


def _copy(bias: Tensor) -> Tensor:
    return bias.clone(memory_format=torch.contiguous_format)
