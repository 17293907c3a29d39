"""A plan of where experts stand, and how near to the best one it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .placement import Placement

Solver = Literal["ilp", "greedy"]
LinkSolver = Literal["exact", "ilp", "greedy"]


@dataclass(frozen=True)
class LayerPlan:
    """Where one layer's experts stand.

    Attributes:
        placement: of the layer's experts.
        device_load: what each device gets, an expert's load split evenly among its copies.
        bound: no placement of as many copies per device has a busiest device below this.
        solver: whose answer it is: ``"greedy"`` where that was near enough to the bound.
    """

    placement: Placement
    device_load: tuple[float, ...]
    bound: float
    solver: Solver

    @property
    def gap(self) -> float:
        """How far above the bound the busiest device is, at most: 0.02 is two percent."""
        return relative_gap(max(self.device_load), self.bound)


@dataclass(frozen=True)
class PlacementPlan:
    """Where every layer's experts stand.

    Attributes:
        layers: one each.
        link_time: the slowest link's traffic over bandwidth, summed over adjacent layers; None
            without transitions.
        link_bound: no assignment of these clusters to devices has less.
        link_solver: ``"exact"`` where all links are alike, else ``"ilp"`` or ``"greedy"``.
    """

    layers: tuple[LayerPlan, ...]
    link_time: float | None = None
    link_bound: float | None = None
    link_solver: LinkSolver | None = None

    @property
    def placements(self) -> tuple[Placement, ...]:
        return tuple(layer.placement for layer in self.layers)

    @property
    def link_gap(self) -> float | None:
        if self.link_time is None or self.link_bound is None:
            return None
        return relative_gap(self.link_time, self.link_bound)


def relative_gap(found: float, bound: float) -> float:
    return found / bound - 1 if bound > 0 else 0.0
