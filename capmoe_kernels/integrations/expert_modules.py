"""The weights of Transformers 4's experts: a module for each, made views of one tensor for all.

The kernels read [E, 2F, H] and [E, H, F]. A copy would double the model's memory, and would not
follow it. So the weights of a block's experts move into one tensor, expert by expert, and every
parameter goes on as a view of its place there: the same object, of the same value, that a later
change in place reaches the kernels through. Whatever gives the parameters other memory, such as a
move to another device or a ``deepcopy`` of the model, ends that: take the model over anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..experts import Experts
from .reading import activation_of, plain_weight

_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))  # the latter: Mixtral


def read_expert_modules(experts: nn.ModuleList) -> Experts:
    """Gated experts without biases, of ``nn.Linear`` modules called as one of ``_NAMES``.

    Raises:
        ValueError: an expert is another kind of module, quantised, wrapped, or not in memory.
    """
    gate, up, down = _names(experts)
    activations = {activation_of(getattr(expert, "act_fn", None)) for expert in experts}
    if len(activations) != 1:
        raise ValueError(f"experts must share one hidden_act, got {sorted(activations)}")
    activation: Any = activations.pop()
    ups = [[_weight(expert, gate), _weight(expert, up)] for expert in experts]
    downs = [[_weight(expert, down)] for expert in experts]
    for group in (ups, downs):
        _check_alike(group)
    return Experts(_stack(ups), _stack(downs), activation=activation)


def _names(experts: nn.ModuleList) -> tuple[str, str, str]:
    for names in _NAMES:
        if len(experts) and all(hasattr(e, name) for e in experts for name in names):
            return names
    raise ValueError(
        f"experts must be gated MLPs with {' or '.join(', '.join(names) for names in _NAMES)}"
    )


def _weight(expert: nn.Module, name: str) -> nn.Parameter:
    linear: Any = getattr(expert, name)
    if type(linear) is not nn.Linear:
        raise ValueError(
            f"{name} of an expert must be nn.Linear, neither quantised nor wrapped,"
            f" got {type(linear).__name__}"
        )
    if linear.bias is not None:
        raise ValueError(f"{name} of an expert must have no bias (mlp_bias must be False)")
    return plain_weight(linear, "weight")


def _check_alike(group: list[list[nn.Parameter]]) -> None:
    first = [(p.shape, p.dtype, p.device) for p in group[0]]
    for own in group:
        if [(p.shape, p.dtype, p.device) for p in own] != first:
            raise ValueError("the experts of a block must have one shape, dtype and device")
    if group[0][0].device.type == "meta":
        raise ValueError(
            "the experts' weights must be in memory, they are on the meta device: load the model"
            " without offloading to the CPU or the disk"
        )


def _stack(group: list[list[nn.Parameter]]) -> Tensor:
    """[E, rows, columns] with the rows of ``group[e]`` below each other; see the top of the file"""
    # It requires no grad, whatever the parameters do now: theirs may change, and is what is asked.
    whole = _already_stacked(group)
    return _moved(group) if whole is None else whole


def _moved(group: list[list[nn.Parameter]]) -> Tensor:
    first = group[0][0]
    rows = [p.shape[0] for p in group[0]]
    # Whatever mode apply is called in, a parameter stays the kind of tensor that it was.
    with torch.inference_mode(first.is_inference()), torch.no_grad():
        whole = first.new_empty(len(group), sum(rows), first.shape[1])
        for place, own in zip(whole, group, strict=True):
            for view, parameter in zip(place.split(rows), own, strict=True):
                view.copy_(parameter)
                parameter.data = view
    return whole


def _already_stacked(group: list[list[nn.Parameter]]) -> Tensor | None:
    """The tensor that an earlier call has made, if the parameters are still its views."""
    first = group[0][0]
    storage, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for parameter in (p for own in group for p in own):
        here = parameter.untyped_storage().data_ptr(), parameter.storage_offset()
        if here != (storage, place) or not parameter.is_contiguous():
            return None
        place += parameter.numel()
    rows, columns = sum(p.shape[0] for p in group[0]), first.shape[1]
    with torch.no_grad():
        return first.data.as_strided(
            (len(group), rows, columns), (rows * columns, columns, 1), first.storage_offset()
        )
