"""A capacity as one rank of several applies it, and the rows it lets an expert get from there."""

from __future__ import annotations

from dataclasses import replace

from .._op_options import select_options
from ..bounds import host_capacity
from ..capacity import Capacity
from ..integrations.ranks import reseed


def own_capacity(capacity: Capacity, rank: int, own_experts: tuple[int, ...]) -> Capacity:
    """``capacity`` with the rank's own random numbers, and its own experts as the local ones.

    Raises:
        ValueError: the rank's experts are no range, as ``expand="local"`` wants them.
    """
    own = reseed(capacity, rank)
    if capacity.expand != "local":
        return own
    experts = sorted(own_experts)
    start, stop = (experts[0], experts[-1] + 1) if experts else (0, 0)
    if stop - start != len(experts):
        raise ValueError(
            "Capacity.expand='local' needs each rank's experts to be a contiguous range,"
            f" got {own_experts} on rank {rank}"
        )
    return replace(own, local_experts=(start, stop))


def bound_of(
    capacity: Capacity, num_experts: int
) -> tuple[tuple[int, int] | None, int | None, str]:
    """(ratio, limit, rounding) of each expert's bound; ratio and limit None where there is none."""
    if capacity.scope == "device":
        return None, None, capacity.rounding
    ratio, limit, rounding = select_options(capacity, num_experts)[:3]
    return ratio, limit, rounding


def is_bounded(capacity: Capacity, num_experts: int) -> bool:
    return bound_of(capacity, num_experts)[:2] != (None, None)


def rows_per_expert(capacity: Capacity, num_experts: int, top_k: int, max_tokens: int) -> int:
    """min(C, T) for T of ``max_tokens``: no fewer tokens make it larger."""
    return host_capacity(max_tokens, num_experts, top_k, *bound_of(capacity, num_experts))


def bound_in_words(capacity: Capacity) -> str:
    """Of one that bounds every expert."""
    if capacity.ratio is None:
        return f"fixed by limit={capacity.limit}"
    return f"fixed by factor={capacity.ratio[0]}/{capacity.ratio[1]}, {capacity.rounding}"
