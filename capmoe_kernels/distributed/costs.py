"""What a step of an expert-parallel layer takes, modelled from the rows that every device runs.

    t_r = fixed + max(sum_e (ceil(n_e / B) * tile + expert), sum_e weights)   e: with n_e > 0 rows
    step = max_r t_r + token * max_s T_s + wire_fixed + wire_row * max_s (rows sent)

Costs come from a short measurement (:func:`capmoe_kernels.distributed.calibrate`) or from numbers
you have.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import require_int
from .placement import Placement
from .straggler_devices import rows_by_device, rows_by_slot, rows_on_the_wire


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a step.

    Attributes:
        tile: of ``rows_per_tile`` rows, or fewer, in one expert.
        rows_per_tile: B.
        expert: of an expert that has rows, beside its tiles.
        weights: of reading one expert's weights, where that may take longer than its tiles.
        fixed: of a layer on a device.
        token: of the gate, the copies and the sum, per token of a source rank.
        wire_row: per row that a rank sends; its two ways are two rows.
        wire_fixed: of the two exchanges.
    """

    tile: float
    rows_per_tile: int = 1
    expert: float = 0.0
    weights: float = 0.0
    fixed: float = 0.0
    token: float = 0.0
    wire_row: float = 0.0
    wire_fixed: float = 0.0

    def __post_init__(self) -> None:
        require_int("Costs.rows_per_tile", self.rows_per_tile, minimum=1)
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(
                    f"Costs.{field.name} must be >= 0, got {getattr(self, field.name)}"
                )

    def scaled(self, flops: float, weight_bytes: float, row_bytes: float) -> Costs:
        """For experts whose row takes so many times the operations, and so on."""
        return replace(
            self,
            tile=self.tile * flops,
            expert=self.expert * weight_bytes,
            weights=self.weights * weight_bytes,
            token=self.token * row_bytes,
            wire_row=self.wire_row * row_bytes,
        )


class StepSeconds(NamedTuple):
    """Seconds of L steps.

    Attributes:
        devices: [L, D] float64, each device's experts.
        rest: [L] float64, what every device does: gate, copies, sum.
        wire: [L] float64, the exchanges.
    """

    devices: Tensor
    rest: Tensor
    wire: Tensor

    @property
    def total(self) -> Tensor:
        """[L]: until the busiest device is done."""
        return self.devices.amax(1) + self.rest + self.wire


def step_seconds(
    rows: Tensor,
    placement: Placement,
    costs: Costs,
    tokens: Tensor | None = None,
    sent: Tensor | None = None,
) -> StepSeconds:
    """Model the steps that run ``rows``.

    Args:
        rows: [L, S, E] int64, what is run: see ``Counts`` in straggler_counts.py.
        placement: of the E experts.
        costs: of their parts.
        tokens: [L, S], tokens of each source rank; None: none, so that ``costs.token`` is nothing.
        sent: [L] rows that the rank which sends most sends, both ways: an exchange of static shape
            sends padding, too. None: only ``rows`` that are not at home, 0 where source ranks are
            unknown.
    """
    slots = rows_by_slot(rows, placement)
    run = slots.rows.sum(1)  # [L, P]
    tiles = ((run + costs.rows_per_tile - 1) // costs.rows_per_tile).double()
    busy = (run > 0).double()
    compute = _by_device(tiles * costs.tile + busy * costs.expert, slots.device, placement)
    read = _by_device(busy * costs.weights, slots.device, placement)
    most = torch.zeros(rows.shape[0]) if tokens is None else tokens.amax(1)
    rest = most.double() * costs.token
    if sent is None:
        wire = rows_on_the_wire(rows_by_device(rows, placement))
        sent = torch.zeros(rows.shape[0]) if wire is None else wire.amax(1)
    return StepSeconds(
        costs.fixed + torch.maximum(compute, read),
        rest,
        costs.wire_fixed + sent.double() * costs.wire_row,
    )


def _by_device(seconds: Tensor, device: Tensor, placement: Placement) -> Tensor:
    """[L, P] summed to [L, D]."""
    out = torch.zeros(seconds.shape[0], placement.num_ranks, dtype=torch.float64)
    return out.index_add_(1, device, seconds)
