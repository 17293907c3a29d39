"""Packed weights: sixteen rows side by side, as the CPU's kernels read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16


def pack(weights: Tensor, gated: bool, layout: str) -> Tensor:
    """See the op table in ops.py."""
    experts, rows, columns = weights.shape
    pair = _columns_together(weights)
    halves = 2 if gated else 1
    if layout == "interleaved" and not gated:
        raise ValueError("layout must be concat for weights that are not gated, got interleaved")
    if layout == "interleaved":
        weights = torch.cat([weights[:, ::2], weights[:, 1::2]], dim=1)
    padding = (0, -columns % (pair * BLOCK), 0, -(rows // halves) % BLOCK)
    halved = F.pad(weights.reshape(experts, halves, rows // halves, columns), padding)
    _, _, units, padded = halved.shape
    blocks = halved.view(experts, halves, units // BLOCK, BLOCK, padded // pair, pair)
    # -> expert, unit block, half, columns, row, pair
    ordered = blocks.permute(0, 2, 1, 4, 3, 5)
    return ordered.reshape(experts, units // BLOCK * halves, padded, BLOCK)


def unpack(packed: Tensor, gated: bool, columns: int) -> Tensor:
    """[E, N rounded up, columns], "concat" where gated: what ``pack`` was given, and zero rows."""
    experts, blocks, padded, _ = packed.shape
    pair, halves = _columns_together(packed), 2 if gated else 1
    parts = packed.view(experts, blocks // halves, halves, padded // pair, BLOCK, pair)
    rows = parts.permute(0, 2, 1, 4, 3, 5).reshape(experts, blocks * BLOCK, padded)
    return rows[..., :columns]


def _columns_together(weights: Tensor) -> int:
    return 2 if weights.dtype == torch.bfloat16 else 1
