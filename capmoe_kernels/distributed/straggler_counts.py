"""Pairs per source rank and expert, before and after capacity, in exact integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import require_int
from ..bounds import host_capacity
from ..capacity import Capacity
from ..routing import Routing
from .placement import Placement


class Counts(NamedTuple):
    """What L steps of S source ranks ask of E experts, and what is run.

    Attributes:
        asked: [L, S, E] int64, pairs that the top-k asks for.
        rows: [L, S, E] int64, pairs that are run, extra candidates included.
        extra: [L, S, E] int64, those of ``rows`` that no top-k asked for.
        exact: False where ``extra`` may be more: loads alone don't say which top-k pairs the extra
            candidates of Expanded Drop displace.
    """

    asked: Tensor
    rows: Tensor
    extra: Tensor
    exact: bool = True


def counts_of_routings(routings: Sequence[Routing]) -> Counts:
    """One step; a Routing per source rank."""
    asked, rows, extra = [], [], []
    for rank, routing in enumerate(routings):
        if not isinstance(routing, Routing):
            raise TypeError(
                f"routing[{rank}] must be capmoe_kernels.Routing, got {type(routing).__name__}"
            )
        if routing.demand_per_expert.shape != routings[0].demand_per_expert.shape:
            raise ValueError(
                f"routing[{rank}] must have {routings[0].demand_per_expert.shape[0]} experts like"
                f" routing[0], got {routing.demand_per_expert.shape[0]}"
            )
        asked.append(routing.demand_per_expert.cpu().long())
        rows.append(routing.tokens_per_expert.cpu().long())
        extra.append(_extra(routing))
    return Counts(torch.stack(asked)[None], torch.stack(rows)[None], torch.stack(extra)[None])


def _extra(routing: Routing) -> Tensor:
    """[E]: rows of columns behind the top-k."""
    ids, kept = routing.expert_ids.cpu().long(), routing.rows.cpu() >= 0
    num_experts = routing.demand_per_expert.shape[0]
    # The top-k's columns come first and are all that the demand counts.
    filled = (ids < num_experts).sum(0).cumsum(0)
    top_k = int((filled < routing.demand_per_expert.sum().cpu()).sum()) + 1
    return torch.bincount(ids[:, top_k:][kept[:, top_k:]], minlength=num_experts)


def as_loads(loads: Any) -> Tensor:
    """[L, S, E] int64 from [E], [S, E] or [L, S, E].

    Raises:
        TypeError, ValueError: not whole numbers >= 0 of that shape.
    """
    try:
        found = torch.as_tensor(loads)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"loads must be a Routing, Routings or numbers: {error}") from None
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"loads must be whole numbers, got {found.dtype}")
    if not 1 <= found.dim() <= 3 or 0 in found.shape:
        raise ValueError(
            "loads must be [E], [source ranks, E] or [steps, source ranks, E],"
            f" got {list(found.shape)}"
        )
    if int(found.min()) < 0:
        raise ValueError(f"loads must be >= 0, got {int(found.min())}")
    return found.cpu().long()[(None,) * (3 - found.dim())]


def counts_of_loads(
    asked: Tensor, capacity: Capacity | None, placement: Placement, top_k: int | None
) -> Counts:
    """What ``capacity``, applied by every source rank to its own tokens, makes of [L, S, E] loads.

    The number of pairs that an expert keeps doesn't depend on which ones it prefers, so loads are
    enough for Token Drop, and for Expanded Drop over each rank's own experts: these take every
    token of the rank that they have room for.

    Raises:
        ValueError: what ``capacity`` does depends on more than loads.
    """
    if capacity is None:
        return Counts(asked, asked, torch.zeros_like(asked))
    _check_decided_by_loads(capacity)
    limits = _limits(asked, capacity)
    kept = torch.minimum(asked, limits)
    if capacity.expand == "none":
        return Counts(asked, kept, torch.zeros_like(asked))
    if top_k is None:
        raise ValueError("top_k must be given with expand='local', which offers whole tokens")
    require_int("top_k", top_k, minimum=1, maximum=asked.shape[2])
    if asked.shape[1] != placement.num_ranks:
        raise ValueError(
            f"expand='local' needs the loads of each of the {placement.num_ranks} ranks' tokens,"
            f" got {asked.shape[1]} source ranks"
        )
    rows = torch.where(_is_local(placement), torch.minimum(limits, _tokens(asked, top_k)), kept)
    return Counts(asked, rows, rows - kept, exact=capacity.expand_priority == "topk_first")


def _check_decided_by_loads(capacity: Capacity) -> None:
    undecided = {
        "expand": capacity.expand == "rank",
        "reroute_rounds": capacity.reroute_rounds > 1,
        "max_experts_per_token": capacity.max_experts_per_token is not None,
        "scope": capacity.scope == "device",
    }
    for name, given in undecided.items():
        if given:
            raise ValueError(
                f"Capacity.{name}={getattr(capacity, name)!r} depends on more than loads:"
                " give straggler the Routings"
            )


def _limits(asked: Tensor, capacity: Capacity) -> Tensor:
    """[L, S, 1]: C of each source rank. Its pairs are top_k * T, so T itself isn't needed."""
    num_experts = asked.shape[2]
    if capacity.limit is None and capacity.ratio is None:
        return asked.sum(2, keepdim=True)
    pairs = asked.sum(2).flatten().tolist()
    ratio, limit, rounding = capacity.ratio, capacity.limit, capacity.rounding
    limits = [host_capacity(each, num_experts, 1, ratio, limit, rounding) for each in pairs]
    return torch.tensor(limits).view(*asked.shape[:2], 1)


def _tokens(asked: Tensor, top_k: int) -> Tensor:
    """[L, S, 1]: tokens of each source rank."""
    pairs = asked.sum(2, keepdim=True)
    if bool((pairs % top_k).any()):
        raise ValueError(f"loads of a rank must be whole tokens of top_k={top_k} pairs each")
    return pairs // top_k


def _is_local(placement: Placement) -> Tensor:
    """[S, E] bool: whether the rank holds the expert."""
    local = torch.zeros(placement.num_ranks, placement.num_experts, dtype=torch.bool)
    for rank, experts in enumerate(placement.experts_of_rank):
        local[rank, list(experts)] = True
    return local
