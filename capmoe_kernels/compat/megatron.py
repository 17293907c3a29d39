"""Megatron-Core's routing tables, with a capacity: ``probs`` and ``routing_map``, both [T, E].

Names and results are those of ``megatron.core.transformer.moe.moe_utils`` (0.16.1), except that who
is dropped has a written order; nothing of Megatron is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import (
    FLOATS,
    readable,
    require_choice,
    require_inference,
    require_int,
    require_tensor,
)
from .._routing_checks import RowLayout
from ..bounds import expert_capacity
from ..capacity import Capacity, Policy
from ..routing import Routing, select
from .megatron_permute import permute, unpermute

__all__ = ["apply_router_token_dropping", "permute", "select_from_map", "unpermute"]

_POLICIES: dict[str, Policy] = {"probs": "score", "position": "keep_first"}


def select_from_map(
    probs: Tensor,
    routing_map: Tensor,
    capacity: Capacity | None = None,
    *,
    router_topk: int | None = None,
    token_mask: Tensor | None = None,
    layout: RowLayout = "packed",
    row_alignment: int = 1,
) -> Routing:
    """:func:`capmoe_kernels.select` for Megatron's tables.

    Args:
        probs: [T, E] float32, bfloat16 or float16: the weights of the chosen pairs, and what
            ``capacity`` ranks by. Others are not looked at.
        routing_map: [T, E] bool, the chosen pairs.
        capacity: None is dropless; see :func:`capmoe_kernels.select`.
        router_topk: the most experts a token chose; the capacity factor is of this. None: read from
            the map, which only a CPU can do without waiting.
        token_mask, layout, row_alignment: see :func:`capmoe_kernels.route`.

    Returns:
        Routing with ``router_topk`` columns, a token's experts in ascending order.

    Raises:
        TypeError, ValueError: naming the argument and what it expects. A token with more than
            ``router_topk`` experts is looked for on a CPU; elsewhere its highest experts are lost.
        RuntimeError: ``probs`` requires grad.
    """
    _check_tables(probs, routing_map)
    columns = _columns(routing_map, router_topk)
    num_experts = routing_map.shape[1]
    every = torch.arange(num_experts, dtype=torch.int32, device=routing_map.device)
    # Chosen experts first, in order; num_experts, which select takes for "not routed", behind.
    ids = torch.where(routing_map, every, num_experts).sort(dim=1).values[:, :columns]
    used = ids < num_experts
    weights = probs.float().gather(1, ids.clamp(max=num_experts - 1).long())
    return select(
        ids,
        torch.where(used, weights, 0.0),
        num_experts,
        capacity,
        token_mask=token_mask,
        layout=layout,
        row_alignment=row_alignment,
    )


def apply_router_token_dropping(
    routing_probs: Tensor,
    routing_map: Tensor,
    router_topk: int,
    capacity_factor: float,
    drop_policy: str = "probs",
    pad_to_capacity: bool = False,
) -> tuple[Tensor, Tensor]:
    """Megatron's bound on the load of every expert, with ties and positions decided.

    An expert keeps ``expert_capacity(T, E, router_topk, capacity_factor)`` of its tokens: by
    ``"probs"`` those of highest probability, by ``"position"`` the first. Ties go to the lower
    token. Megatron leaves ties to ``torch.topk``, so its ``"position"``, a topk over zeros and
    ones, is not the first tokens; and it computes C in floating point, where 0.8 * 6 * 40 / 64
    rounds up to 4.

    Args:
        routing_probs: [T, E] float32, bfloat16 or float16.
        routing_map: [T, E] bool.
        router_topk: the most experts a token chose.
        capacity_factor: finite.
        drop_policy: ``"probs"`` or ``"position"``.
        pad_to_capacity: fill every expert's column up to min(C, T) with tokens that it did not
            keep, lowest first, of probability 0.

    Returns:
        The probabilities of what is kept, 0 elsewhere, of the same dtype, and the map.

    Raises:
        TypeError, ValueError, RuntimeError: see :func:`select_from_map`.
    """
    require_choice("drop_policy", drop_policy, tuple(_POLICIES))
    _check_tables(routing_probs, routing_map)
    num_tokens, num_experts = routing_map.shape
    require_int("router_topk", router_topk, minimum=1, maximum=num_experts)
    bound = expert_capacity(num_tokens, num_experts, router_topk, capacity_factor)
    capacity = Capacity(limit=bound, policy=_POLICIES[drop_policy])
    routing = select_from_map(routing_probs, routing_map, capacity, router_topk=router_topk)
    kept = _map_of(routing, num_experts)
    final_probs = torch.where(kept, routing_probs, 0.0)
    return final_probs, _padded(kept, min(bound, num_tokens)) if pad_to_capacity else kept


def _map_of(routing: Routing, num_experts: int) -> Tensor:
    """[T, E] bool: the pairs that were kept."""
    kept = routing.rows >= 0
    table = kept.new_zeros(kept.shape[0], num_experts + 1)
    return table.scatter(1, routing.expert_ids.long(), kept)[:, :num_experts].contiguous()


def _padded(kept: Tensor, capacity: int) -> Tensor:
    """``kept`` with the first tokens that are not in a column added until it has ``capacity``."""
    order = kept.byte().argsort(dim=0, descending=True, stable=True)[:capacity]
    return torch.zeros_like(kept).scatter(0, order, True)


def _check_tables(probs: Any, routing_map: Any) -> None:
    require_tensor("routing_map", routing_map, [None, None], [torch.bool], meaning="T, E")
    shape, device = list(routing_map.shape), routing_map.device
    require_tensor("probs", probs, shape, FLOATS, device, "T, E")
    if shape[1] == 0:
        raise ValueError("routing_map must have at least one expert, got 0 columns")
    require_inference(probs=probs)


def _columns(routing_map: Tensor, router_topk: int | None) -> int:
    if router_topk is not None:
        require_int("router_topk", router_topk, minimum=1, maximum=routing_map.shape[1])
    if not readable(routing_map):
        if router_topk is None:
            raise ValueError("router_topk must be given where the map cannot be read at once")
        return router_topk
    most = int(routing_map.sum(1).max()) if routing_map.shape[0] else 0
    if router_topk is None:
        return max(most, 1)
    if most > router_topk:
        raise ValueError(
            f"routing_map must hold at most router_topk = {router_topk} experts of a token,"
            f" got {most}"
        )
    return router_topk
