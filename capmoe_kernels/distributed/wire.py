"""Which row of which rank's buffer a kept pair travels in, and which expert a received row is for.

A buffer holds one block of rows for every (rank, slot): slot p of a rank is the p-th of its
experts, and every rank counts as many slots as the fullest one has. Blocks are offsets and counts,
so a buffer of static shape and one of exact size differ only in their offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..routing import Routing, select
from .placement import Placement


class Blocks(NamedTuple):
    """Where a buffer's blocks are, (rank, slot) by (rank, slot)."""

    starts: Tensor
    """[D * P] int64: first row, never falling."""
    counts: Tensor
    """[D * P] int32: rows in use."""
    num_rows: int
    """W, the rows of the buffer."""


class _Tables(NamedTuple):
    """A placement as one rank sends by it: constants on one device, all int64."""

    block_expert: Tensor
    """[D * P]: the block's expert; E where this rank sends nothing there."""
    block_share: Tensor
    """[D * P]: which of the expert's holders the block is."""
    block_holders: Tensor
    """[D * P]: among how many holders this rank deals the expert's rows."""
    expert_holders: Tensor
    """[E]: the same, by expert."""
    expert_blocks: Tensor
    """[E, most holders]: the blocks of the expert's holders."""


@dataclass(frozen=True)
class Wire:
    """Rows between a rank's routing and its buffers.

    Where several ranks hold an expert, a rank that is one of them keeps its own rows; any other
    rank deals them out one by one, by the row's number among the expert's, starting with another
    holder on each rank.
    """

    placement: Placement
    rank: int

    @property
    def num_slots(self) -> int:
        """P, the experts of the fullest rank."""
        return max(map(len, self.placement.experts_of_rank))

    @property
    def own_experts(self) -> tuple[int, ...]:
        return self.placement.experts_of_rank[self.rank]

    def block_counts(self, tokens_per_expert: Tensor) -> Tensor:
        """[D * P] int32: the rows this rank sends in each block, from its [E] counts."""
        tables = _tables(self.placement, self.rank, tokens_per_expert.device)
        counts = torch.nn.functional.pad(tokens_per_expert, (0, 1))[tables.block_expert]
        return (
            (counts - tables.block_share + tables.block_holders - 1) // tables.block_holders
        ).int()

    def pair_rows(self, routing: Routing, starts: Tensor) -> Tensor:
        """[T, K] int32: the row each kept pair travels in, -1 where dropped or unused."""
        tables = _tables(self.placement, self.rank, starts.device)
        kept = routing.rows >= 0
        experts = torch.where(kept, routing.expert_ids, 0).long()
        number = routing.rows - routing.expert_offsets[experts]
        holders = tables.expert_holders[experts]
        block = tables.expert_blocks[experts, number % holders]
        return torch.where(kept, starts[block] + number // holders, -1).int()

    def received(self, blocks: Blocks) -> Routing:
        """The routing of a received buffer: every live row a token that chose one own expert."""
        rows = torch.arange(blocks.num_rows, device=blocks.starts.device)
        block = torch.searchsorted(blocks.starts, rows, right=True) - 1
        some = block.clamp(min=0)
        live = (block >= 0) & (rows - blocks.starts[some] < blocks.counts[some])
        slot = torch.where(live, some % self.num_slots, -1).int()[:, None]
        return select(
            slot, torch.ones_like(slot, dtype=torch.float32), max(1, len(self.own_experts))
        )


def tokens_of_rows(rows: Tensor, num_rows: int) -> Tensor:
    """[W] int32: the token that each row of the buffer carries, -1 where none, from [T, K] rows."""
    tokens = torch.arange(rows.shape[0], dtype=torch.int32, device=rows.device)
    # What is dropped goes to a row of its own, past the buffer: no mask whose size only it knows.
    target = torch.where(rows >= 0, rows, num_rows).flatten().long()
    out = torch.full((num_rows + 1,), -1, dtype=torch.int32, device=rows.device)
    out.scatter_(0, target, tokens[:, None].expand(rows.shape).reshape(-1))
    return out[:num_rows]


@lru_cache(maxsize=64)
def _tables(placement: Placement, rank: int, device: torch.device) -> _Tables:
    slots = max(map(len, placement.experts_of_rank))
    holders = [_holders(placement, rank, expert) for expert in range(placement.num_experts)]
    expert, share, among = [], [], []
    for holder, experts in enumerate(placement.experts_of_rank):
        for slot in range(slots):
            used = slot < len(experts) and holder in holders[experts[slot]]
            dealt = holders[experts[slot]] if used else [holder]
            expert.append(experts[slot] if used else placement.num_experts)
            share.append(dealt.index(holder))
            among.append(len(dealt))
    most = max(map(len, holders))
    blocks = [
        [d * slots + placement.experts_of_rank[d].index(e) for d in own] + [0] * (most - len(own))
        for e, own in enumerate(holders)
    ]
    lists = expert, share, among, [len(own) for own in holders], blocks
    return _Tables(*(torch.tensor(values, device=device) for values in lists))


def _holders(placement: Placement, rank: int, expert: int) -> list[int]:
    """The ranks among which ``rank`` deals out its rows for ``expert``."""
    ranks = placement.ranks_of_expert[expert]
    if rank in ranks:
        return [rank]
    return [ranks[(rank + turn) % len(ranks)] for turn in range(len(ranks))]
