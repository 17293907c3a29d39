"""Capacity as expert parallelism applies it: every rank bounds the load its own tokens make.

Tokens of a batch live on D ranks, and rank d holds experts ``[d*E/D, (d+1)*E/D)``. "Capacity
constraints apply to tokens within each local device" (arXiv 2503.05066, section 4): C comes from
the rank's own token count, so an expert receives at most C from each rank. Here one process plays
all ranks: it routes each rank's tokens on their own, then runs the experts once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..capacity import Capacity
from ..gating import Gating
from ..routing import Routing, route, select


def check_ranks(num_ranks: int, num_experts: int) -> None:
    """Raise ValueError where experts cannot be dealt out evenly."""
    if num_ranks < 1 or num_experts % num_ranks:
        raise ValueError(
            f"the number of devices must divide the number of experts, got {num_ranks} devices"
            f" for {num_experts} experts"
        )


def local_experts(rank: int, num_ranks: int, num_experts: int) -> tuple[int, int]:
    """(start, stop) of the experts on ``rank``: contiguous blocks of equal size."""
    share = num_experts // num_ranks
    return rank * share, (rank + 1) * share


def reseed(capacity: Capacity, steps: int) -> Capacity:
    """``capacity`` with the seed ``steps`` further on; the last one precedes 0."""
    return replace(capacity, seed=(capacity.seed + steps) % 2**63)


def rank_capacity(capacity: Capacity, rank: int, num_ranks: int, num_experts: int) -> Capacity:
    """``capacity`` as ``rank`` applies it: its own local experts, its own random numbers."""
    own = reseed(capacity, rank)
    if capacity.expand != "local":
        return own
    return replace(own, local_experts=local_experts(rank, num_ranks, num_experts))


def route_per_rank(
    router_logits: Tensor,
    gating: Gating,
    capacity: Capacity | None,
    num_ranks: int,
    *,
    selection_bias: Tensor | None = None,
) -> list[Routing]:
    """Route the tokens of every rank on their own.

    Args:
        router_logits: [T, E]; rank d's tokens are the d-th of ``num_ranks`` contiguous parts, whose
            sizes differ by at most one.
        gating: see :func:`capmoe_kernels.route`.
        capacity: of each rank, whatever its policy and expansion, so that Token Drop and Expanded
            Drop are compared under the same bound. ``local_experts`` is replaced by the rank's own.
            None is dropless.
        num_ranks: D, divides E.
        selection_bias: see :func:`capmoe_kernels.route`.

    Returns:
        One Routing per rank, of that rank's tokens.

    Raises:
        ValueError: D does not divide E.
    """
    num_experts = router_logits.shape[1]
    check_ranks(num_ranks, num_experts)
    return [
        route(
            logits,
            gating,
            capacity and rank_capacity(capacity, rank, num_ranks, num_experts),
            selection_bias=selection_bias,
        )
        for rank, logits in enumerate(router_logits.tensor_split(num_ranks))
    ]


def merge(routings: Sequence[Routing]) -> Routing:
    """The ranks' decisions as one Routing over all tokens, so that the experts run once."""
    if len(routings) == 1:
        return routings[0]
    expert_ids = torch.cat([routing.expert_ids for routing in routings])
    rows = torch.cat([routing.rows for routing in routings])
    weights = torch.cat([routing.weights for routing in routings])
    num_experts = routings[0].tokens_per_expert.shape[0]
    merged = select(torch.where(rows >= 0, expert_ids, -1), weights, num_experts)
    demand = torch.stack([routing.demand_per_expert for routing in routings]).sum(0)
    return merged._replace(expert_ids=expert_ids, demand_per_expert=demand.int())
