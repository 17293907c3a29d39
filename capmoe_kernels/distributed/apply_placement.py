"""Renumbering a layer's experts, so that each rank's stand side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import require_int
from ..experts import Experts
from ..packed_experts import PackedExperts
from .placement import Placement, check_ranks


class PlacedLayer(NamedTuple):
    """A layer whose rank r holds the experts ``placement.experts_of_rank[r]``, a range."""

    experts: Experts
    router_weight: Tensor
    router_bias: Tensor | None
    selection_bias: Tensor | None
    placement: Placement
    """Of the new numbers: contiguous."""
    expert_ids: Tensor
    """[E] int64: for each new number the old one."""


def apply_placement(
    experts: Experts,
    router_weight: Tensor,
    placement: Placement,
    *,
    router_bias: Tensor | None = None,
    selection_bias: Tensor | None = None,
    num_groups: int = 1,
) -> PlacedLayer:
    """The same layer with experts renumbered: rank 0's come first, then rank 1's.

    Once the weights lie so, expert parallelism needs no table of who is where. Outputs stay what
    they are, except where the number itself decides: equal logits (the lower number wins),
    ``Capacity.policy="random"``, ``local_experts`` and the budgets of ``scope="device"``, which
    become those of the new devices.

    Args:
        experts: all E experts, not packed.
        router_weight: [E, ...], whose row e gives expert e's logit.
        placement: without replicas, which have no number of their own.
        router_bias: [E], of the logits.
        selection_bias: [E], see :func:`capmoe_kernels.route`.
        num_groups: ``Gating.num_groups``. Groups are made of numbers, so with more than one an
            expert must stay within a group of its old neighbours.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
    """
    if not isinstance(experts, Experts):
        raise TypeError(f"experts must be capmoe_kernels.Experts, got {type(experts).__name__}")
    if isinstance(experts, PackedExperts):
        raise TypeError("experts must not be packed yet: place them, then pack")
    ids = _new_order(placement, experts.num_experts, num_groups)
    for name, rows in (
        ("router_weight", router_weight),
        ("router_bias", router_bias),
        ("selection_bias", selection_bias),
    ):
        _require_rows(name, rows, len(ids))
    ends = [0, *accumulate(map(len, placement.experts_of_rank))]
    ranges = tuple(tuple(range(*pair)) for pair in pairwise(ends))
    order = torch.tensor(ids)
    return PlacedLayer(
        _reordered(experts, order),
        _taken(router_weight, order),
        None if router_bias is None else _taken(router_bias, order),
        None if selection_bias is None else _taken(selection_bias, order),
        Placement(ranges),
        order,
    )


def _new_order(placement: Placement, num_experts: int, num_groups: int) -> list[int]:
    check_ranks(placement, num_experts, placement.num_ranks)
    ids = [expert for held in placement.experts_of_rank for expert in held]
    if len(ids) > num_experts:
        raise ValueError(
            "placement must have every expert once to renumber them, got replicas: keep the"
            " weights as they are and copy each rank's by placement.experts_of_rank"
        )
    require_int("num_groups", num_groups, minimum=1)
    if num_experts % num_groups:
        raise ValueError(f"num_groups must divide {num_experts} experts, got {num_groups}")
    size = num_experts // num_groups
    for start in range(0, num_experts, size):
        group = {expert // size for expert in ids[start : start + size]}
        if len(group) > 1:
            raise ValueError(
                f"placement must keep each of the {num_groups} groups together, got experts of"
                f" groups {sorted(group)} in one"
            )
    return ids


def _require_rows(name: str, rows: Tensor | None, num_experts: int) -> None:
    if rows is not None and (rows.dim() == 0 or rows.shape[0] != num_experts):
        raise ValueError(f"{name} must have {num_experts} rows, got {list(rows.shape)}")


def _reordered(experts: Experts, order: Tensor) -> Experts:
    up, down = experts.gate_up_bias, experts.down_bias
    return replace(
        experts,
        gate_up_proj=_taken(experts.gate_up_proj, order),
        down_proj=_taken(experts.down_proj, order),
        gate_up_bias=None if up is None else _taken(up, order),
        down_bias=None if down is None else _taken(down, order),
    )


def _taken(rows: Tensor, order: Tensor) -> Tensor:
    return rows[order.to(rows.device)]
