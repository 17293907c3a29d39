"""What the calls of sharded_moe must have alike on all ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

import torch

from ..experts import Experts
from ..gating import Gating
from ..routing import Routing
from .agreement import require_same
from .shard_experts import shard_range

DIGEST_NUMBERS = 4


@dataclass(frozen=True)
class ShardTerms:
    """Of one call on one rank; ranks whose terms are equal compute parts of the same layer."""

    hidden_size: int
    dtype: torch.dtype
    num_experts: int
    candidates: int
    gating: Gating
    activation: str
    has_gate_up_bias: bool
    max_tokens: int | None

    @staticmethod
    def of(shard: Experts, gating: Gating, routing: Routing, most: int | None) -> ShardTerms:
        return ShardTerms(
            shard.hidden_size,
            shard.down_proj.dtype,
            shard.num_experts,
            routing.expert_ids.shape[1],
            gating,
            shard.activation,
            shard.gate_up_bias is not None,
            most,
        )

    def in_words(self) -> dict[str, str]:
        return {
            "hidden_size": str(self.hidden_size),
            "dtype": str(self.dtype),
            "num_experts": str(self.num_experts),
            "gating": str(replace(self.gating, scaling=float(self.gating.scaling))),
            "number of candidates": str(self.candidates),
            "activation": self.activation,
            "shard.gate_up_bias": "a tensor" if self.has_gate_up_bias else "None",
            "max_tokens": str(self.max_tokens),
        }


@lru_cache(maxsize=256)
def digest(terms: ShardTerms) -> tuple[int, ...]:
    """Four int32 that differ where the terms do, for an exchange of static shape."""
    data = sha256(json.dumps(terms.in_words()).encode()).digest()
    starts = range(0, 4 * DIGEST_NUMBERS, 4)
    return tuple(int.from_bytes(data[at : at + 4], "big", signed=True) for at in starts)


def require_alike(gathered: list[list[Any]]) -> None:
    """Raise ValueError where the ranks' [terms in words, neurons] are not of one layer."""
    require_same([words for words, _ in gathered])
    require_parts([neurons for _, neurons in gathered])


def require_parts(neurons: Sequence[int]) -> None:
    """Raise ValueError where the ranks' neurons are not the parts of any F."""
    total, world = sum(neurons), len(neurons)
    parts = [stop - start for start, stop in (shard_range(total, r, world) for r in range(world))]
    if list(neurons) != parts:
        raise ValueError(
            "shard must be each rank's shard_experts of the same experts: the ranks have"
            f" {list(neurons)} neurons, of {total} they would have {parts}"
        )
