"""One capacity for every MoE block, from what a user may give."""

from __future__ import annotations

import os

from ..capacity import Capacity
from .capacity_file import read_capacities
from .ranks import reseed

Capacities = (
    Capacity | list[Capacity | None] | tuple[Capacity | None, ...] | str | os.PathLike[str] | None
)
"""One for all MoE blocks, one for each in the model's order, or the path of a ``capacity.json``
(``capmoe calibrate`` writes one). None bounds nothing."""


def per_block(
    name: str, capacities: Capacities, num_blocks: int, num_ranks: int
) -> list[Capacity | None]:
    """``capacities`` of every block; a single one's seed is moved on from block to block.

    Raises:
        TypeError, ValueError: naming ``name`` and what it expects.
        OSError: there is no such file.
    """
    if capacities is None:
        return [None] * num_blocks
    if isinstance(capacities, Capacity):
        return [reseed(capacities, block * num_ranks) for block in range(num_blocks)]
    if isinstance(capacities, (str, os.PathLike)):
        return _one_each(name, read_capacities(capacities), num_blocks)
    if isinstance(capacities, (list, tuple)):
        return _one_each(name, list(capacities), num_blocks)
    raise TypeError(
        f"{name} must be a Capacity, None, a list of them with one for each MoE block, or the path"
        f" of a capacity.json, got {type(capacities).__name__}"
    )


def _one_each(
    name: str, capacities: list[Capacity | None], num_blocks: int
) -> list[Capacity | None]:
    for each in capacities:
        if each is not None and not isinstance(each, Capacity):
            raise TypeError(f"{name} must hold Capacity or None, got {type(each).__name__}")
    if len(capacities) != num_blocks:
        raise ValueError(
            f"{name} must have one entry for each of the model's {num_blocks} MoE blocks,"
            f" got {len(capacities)}"
        )
    return capacities
