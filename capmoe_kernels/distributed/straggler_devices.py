"""From pairs per expert to pairs per device, and what of it crosses the wire."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .placement import Placement


class Slots(NamedTuple):
    """Every copy of every expert, P in all.

    Attributes:
        device, expert: [P], where the copy is and of what.
        rows: [L, S, P] int64, what each source rank gives it.
    """

    device: Tensor
    expert: Tensor
    rows: Tensor


def rows_by_slot(rows: Tensor, placement: Placement) -> Slots:
    """Deal the [L, S, E] rows of each source rank out to the experts' copies.

    As ExpertParallel does: a source rank uses its own copy of an expert where it has one; other
    rows are dealt out to the copies in turn, beginning with another copy on each rank.
    """
    slots = [
        (device, expert, copy, len(devices))
        for expert, devices in enumerate(placement.ranks_of_expert)
        for copy, device in enumerate(devices)
    ]
    device, expert, copy, copies = torch.tensor(slots).unbind(1)
    asked = rows[:, :, expert]
    source = torch.arange(rows.shape[1])[:, None]
    dealt = (asked + copies - 1 - (copy - source) % copies) // copies
    if rows.shape[1] == placement.num_ranks:
        # Whether the source holds the slot's expert, here or elsewhere.
        holds = torch.zeros(placement.num_ranks, placement.num_experts, dtype=torch.bool)
        holds[device, expert] = True
        dealt = torch.where(holds[:, expert], torch.where(device == source, asked, 0), dealt)
    return Slots(device, expert, dealt)


def rows_by_device(rows: Tensor, placement: Placement) -> Tensor:
    """[L, S, D]: which device runs the [L, S, E] rows of each source rank."""
    slots = rows_by_slot(rows, placement)
    out = torch.zeros(*rows.shape[:2], placement.num_ranks, dtype=torch.int64)
    return out.index_add_(2, slots.device, slots.rows)


def rows_on_the_wire(by_device: Tensor) -> Tensor | None:
    """[L, D]: rows that each rank sends, to be computed elsewhere and, computed, back.

    As many bytes as it sends a rank receives. None where the source ranks are not the devices.
    """
    if by_device.shape[1] != by_device.shape[2]:
        return None
    own = by_device.diagonal(dim1=1, dim2=2)
    return by_device.sum(2) + by_device.sum(1) - 2 * own
