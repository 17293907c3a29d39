"""The weighted sum of a token's expert outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def combine(y: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """See the op table in ops.py. Float64 input is summed in float64."""
    accumulate = torch.promote_types(y.dtype, torch.float32)
    out = y.new_zeros((rows.shape[0], y.shape[1]), dtype=accumulate)
    if y.shape[0] == 0:
        return out.to(y.dtype)
    for column in range(rows.shape[1]):
        row = rows[:, column, None]
        term = weights[:, column, None] * y[row[:, 0].clamp(min=0)].to(accumulate)
        out = torch.where(row >= 0, out + term, out)
    return out.to(y.dtype)
