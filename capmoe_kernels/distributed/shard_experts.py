"""A rank's slice of every expert (MoEShard, arXiv 2503.08467): columns, then rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .._checks import require_int
from ..experts import Experts
from ..packed_experts import PackedExperts


def shard_range(intermediate_size: int, rank: int, world: int) -> tuple[int, int]:
    """The neurons [start, stop) of a rank: the first F % world ranks have one more."""
    share, more = divmod(intermediate_size, world)
    start = rank * share + min(rank, more)
    return start, start + share + (rank < more)


def shard_experts(experts: Experts, rank: int, world: int) -> Experts:
    """The neurons of every expert that ``rank`` computes, for
    :func:`~capmoe_kernels.distributed.sharded_moe.sharded_moe`.

    An expert is a sum over its F neurons: a neuron is a row of gate, the same row of up, and a
    column of down. Every rank gets F / world of them, the first F % world ranks one more, so what
    the ranks compute adds up to the expert whatever its activation. The down bias is added once,
    by rank 0.

    Args:
        experts: the whole experts, of either layout; not packed, since packing mixes the rows.
        rank: 0 to world - 1.
        world: ranks that share the work, at most F.

    Returns:
        Experts of intermediate size about F / world, copied, so that no memory is shared
        with ``experts``. ``.pack()`` them once where they are kept.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
    """
    if not isinstance(experts, Experts):
        raise TypeError(f"experts must be capmoe_kernels.Experts, got {type(experts).__name__}")
    if isinstance(experts, PackedExperts):
        raise TypeError("experts must not be packed yet: shard them, then pack the shard")
    size = experts.intermediate_size
    require_int("world", world, minimum=1, maximum=size)
    require_int("rank", rank, minimum=0, maximum=world - 1)
    start, stop = shard_range(size, rank, world)
    bias = experts.gate_up_bias
    down_bias = experts.down_bias if rank == 0 else None
    return replace(
        experts,
        gate_up_proj=_neurons(experts.gate_up_proj, experts, start, stop),
        down_proj=_copy(experts.down_proj[:, :, start:stop]),
        gate_up_bias=None if bias is None else _neurons(bias, experts, start, stop),
        down_bias=None if down_bias is None else _copy(down_bias),
    )


def _neurons(rows: Tensor, experts: Experts, start: int, stop: int) -> Tensor:
    """The rows of neurons start to stop, in the experts' own layout."""
    if not experts.is_gated:
        return _copy(rows[:, start:stop])
    if experts.layout == "interleaved":
        return _copy(rows[:, 2 * start : 2 * stop])
    gate, up = rows.chunk(2, dim=1)
    return torch.cat([gate[:, start:stop], up[:, start:stop]], dim=1)


def _copy(part: Tensor) -> Tensor:
    return part.clone(memory_format=torch.contiguous_format)
