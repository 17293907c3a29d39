"""What was seen of one call of one MoE block."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..routing import Routing


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """One call of one MoE block.

    Attributes:
        layer: which block, from 0.
        num_tokens: T, padding not counted.
        seconds: spent in the block.
        routings: one per rank; empty for a block that Transformers ran.
    """

    layer: int
    num_tokens: int
    seconds: float
    routings: list[Routing]

    @property
    def demand_per_expert(self) -> Tensor:
        """[E] int64: pairs asked for by the top-k of all ranks, before capacity."""
        return torch.stack([routing.demand_per_expert for routing in self.routings]).sum(0)

    @property
    def tokens_per_expert(self) -> Tensor:
        """[E] int64: pairs of all ranks that the experts ran."""
        return torch.stack([routing.tokens_per_expert for routing in self.routings]).sum(0)


def clock(tokens: Tensor) -> float:
    """Seconds, when all work on ``tokens``' device is done."""
    if tokens.is_cuda:  # whose work is asynchronous
        torch.cuda.synchronize(tokens.device)
    return time.perf_counter()
