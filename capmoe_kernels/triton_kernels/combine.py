"""combine: a program sums a slice of one token's columns, or short rows of several tokens."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_LANES = 128
_TERMS = 4  # at most so many rows' loads are in flight together


def combine(y: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """See the op table in ops.py."""
    y, rows, weights = y.contiguous(), rows.contiguous(), weights.contiguous()
    (tokens, terms), hidden = rows.shape, y.shape[1]
    out = y.new_empty(tokens, hidden)
    if out.numel() == 0:
        return out
    vector = 16 // y.element_size()
    columns = min(triton.next_power_of_2(hidden), 2 * _LANES * vector)
    together = max(1, _LANES * vector // columns)
    grid = (triton.cdiv(tokens, together), triton.cdiv(hidden, columns))
    sizes = (tokens, y.shape[0], hidden, terms)
    whole = hidden % columns == 0
    # No more turns than needed, and as even as can be: a term too many costs as much as any.
    unroll = max(1, triton.cdiv(terms, max(1, triton.cdiv(terms, _TERMS))))
    combine_kernel[grid](y, rows, weights, out, *sizes, together, columns, whole, unroll)
    return out


@triton.jit(do_not_specialize=["tokens", "y_rows", "terms"])
def combine_kernel(
    y: tl.const,  # [y_rows, hidden]
    rows: tl.const,  # [tokens, terms]
    weights: tl.const,  # [tokens, terms]
    out,  # [tokens, hidden]
    tokens,
    y_rows,
    hidden,
    terms,
    block_tokens: tl.constexpr,
    block_columns: tl.constexpr,
    whole: tl.constexpr,  # hidden is a multiple of block_columns
    unroll: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * block_tokens + tl.arange(0, block_tokens)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)[None, :]
    real = token < tokens
    total = tl.zeros((block_tokens, block_columns), dtype=tl.float32)
    for start in range(0, terms, unroll):
        for i in tl.static_range(unroll):
            pair = token * terms + start + i
            asked = real & (start + i < terms)
            row = tl.load(rows + pair, mask=asked, other=-1)
            live = (row >= 0) & (row < y_rows)
            # What is not there counts 0 * 0, whatever its weight is and its memory holds.
            weight = tl.load(weights + pair, mask=live, other=0.0)
            inside = live[:, None] if whole else live[:, None] & (column < hidden)
            source = y + row.to(tl.int64)[:, None] * hidden + column
            total += weight[:, None] * tl.load(source, mask=inside, other=0.0).to(tl.float32)
    inside = real[:, None] if whole else real[:, None] & (column < hidden)
    target = out + token[:, None] * hidden + column
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)
