"""A gating and a capacity, checked and turned into the ops' arguments once, not in every call."""

from __future__ import annotations

from typing import Any, NamedTuple

from ._op_options import gate_options, select_options
from ._routing_checks import require_capacity, require_gating
from .capacity import Capacity
from .gating import Gating


class Plan(NamedTuple):
    """How ``capmoe::moe`` is asked for a gating and a capacity that fit a number of experts."""

    gating: Gating
    capacity: Capacity
    gate_options: tuple[Any, ...]
    select_options: tuple[Any, ...]


_MOST = 256
_PLANS: dict[tuple[int, int, int], Plan] = {}


def make_plan(gating: Gating, capacity: Capacity, num_experts: int) -> Plan:
    """The plan of settings that were checked."""
    options = gate_options(gating, capacity, num_experts)
    return Plan(gating, capacity, options, select_options(capacity, num_experts))


def plan_of(gating: Gating, capacity: Capacity, num_experts: int) -> Plan:
    """The plan of these very objects, which are frozen; made, and they checked, where it is new."""
    key = (id(gating), id(capacity), num_experts)  # a plan keeps both alive: no other has their ids
    plan = _PLANS.get(key)
    if plan is None:
        require_gating(gating)
        require_capacity(capacity)
        gating.check_experts(num_experts)
        capacity.check_experts(num_experts)
        plan = make_plan(gating, capacity, num_experts)
        if len(_PLANS) >= _MOST:
            _PLANS.clear()
        _PLANS[key] = plan
    return plan
