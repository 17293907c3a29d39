"""What a gating and a capacity are in the ops' own arguments, and how many rows they may need."""

from __future__ import annotations

from typing import Any

from ._routing_checks import require_row_numbers
from .bounds import select_rows
from .capacity import Capacity
from .gating import Gating


def gate_options(gating: Gating, capacity: Capacity, num_experts: int) -> tuple[Any, ...]:
    """``capmoe::gate``'s arguments after the bias."""
    extra = 0 if capacity.expand == "local" else _extra(gating.top_k, capacity)
    return (
        gating.top_k,
        gating.scoring,
        gating.renormalize,
        float(gating.scaling),
        gating.num_groups,
        gating.topk_groups,
        gating.group_score,
        capacity.drop_score,
        capacity.expand,
        min(extra, num_experts - gating.top_k),
        *(capacity.local_experts or (0, 0)),
    )


def select_options(capacity: Capacity, num_experts: int) -> tuple[Any, ...]:
    """``capmoe::select``'s arguments from ``factor`` to ``seed``."""
    return (
        _ratio(capacity, num_experts),
        capacity.limit,
        capacity.rounding,
        capacity.policy,
        capacity.expand_priority,
        capacity.max_experts_per_token,
        capacity.reroute_rounds,
        capacity.experts_per_device or 1,
        capacity.seed,
    )


def _ratio(capacity: Capacity, num_experts: int) -> tuple[int, int] | None:
    ratio = capacity.ratio
    if ratio is not None and ratio[0] >= ratio[1] * num_experts:
        return None  # C >= top_k * T bounds nothing, and the product stays in 64 bits
    return ratio


def moe_rows(num_tokens: int, top_k: int, capacity: Capacity, num_experts: int) -> int:
    """N of the routing inside ``capmoe::moe``."""
    columns = min(num_experts, top_k + _extra(top_k, capacity))
    return num_rows_of(num_tokens, columns, num_experts, top_k, capacity, "packed", 1)


def _extra(top_k: int, capacity: Capacity) -> int:
    """Candidates beyond the top-k."""
    if capacity.local_experts is not None:
        return capacity.local_experts[1] - capacity.local_experts[0]
    if capacity.reroute_rounds > 1:
        return top_k * (capacity.reroute_rounds - 1)
    return capacity.extra


def num_rows_of(
    num_tokens: int,
    columns: int,
    num_experts: int,
    top_k: int,
    capacity: Capacity,
    layout: str,
    row_alignment: int,
) -> int:
    """N: rows that a routing of ``columns`` candidates allocates."""
    per_token = top_k if capacity.reroute_rounds > 1 else columns
    num_rows = select_rows(
        num_tokens,
        num_experts,
        top_k,
        min(per_token, capacity.max_experts_per_token or per_token),
        _ratio(capacity, num_experts),
        capacity.limit,
        capacity.rounding,
        capacity.experts_per_device or 1,
        layout,
        row_alignment,
    )
    require_row_numbers(num_rows)
    return num_rows
