"""dispatch: a program copies eight rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ROWS = 8  # a warp each: one row per program would spend its time on launching programs


def dispatch(hidden_states: Tensor, row_tokens: Tensor) -> Tensor:
    """See the op table in ops.py. Padding rows are left as they are."""
    hidden_states, row_tokens = hidden_states.contiguous(), row_tokens.contiguous()
    (tokens, hidden), rows = hidden_states.shape, row_tokens.shape[0]
    out = hidden_states.new_empty(rows, hidden)
    if out.numel() == 0:
        return out
    # A lane has a vector of 16 bytes of each step.
    columns = min(triton.next_power_of_2(hidden), 32 * 16 // hidden_states.element_size())
    grid = (triton.cdiv(rows, _ROWS),)
    sizes = (tokens, rows, hidden, _ROWS, columns, hidden % (4 * columns) == 0)
    dispatch_kernel[grid](hidden_states, row_tokens, out, *sizes, num_warps=_ROWS)
    return out


@triton.jit(do_not_specialize=["tokens", "rows"])
def dispatch_kernel(
    hidden_states: tl.const,  # [tokens, hidden]
    row_tokens: tl.const,  # [rows]
    out,  # [rows, hidden]
    tokens,
    rows,
    hidden,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    whole: tl.constexpr,  # hidden is a multiple of four block_columns
):
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    token = tl.load(row_tokens + row, mask=row < rows, other=-1)
    live = ((token >= 0) & (token < tokens))[:, None]
    source = hidden_states + token.to(tl.int64)[:, None] * hidden
    target = out + row[:, None] * hidden
    lane = tl.arange(0, block_columns)[None, :]
    for start in range(0, hidden, 4 * block_columns):
        # Four loads in flight before the first store.
        at0 = start + lane
        at1, at2, at3 = at0 + block_columns, at0 + 2 * block_columns, at0 + 3 * block_columns
        first = tl.load(source + at0, mask=inside(at0, hidden, live, whole))
        second = tl.load(source + at1, mask=inside(at1, hidden, live, whole))
        third = tl.load(source + at2, mask=inside(at2, hidden, live, whole))
        fourth = tl.load(source + at3, mask=inside(at3, hidden, live, whole))
        tl.store(target + at0, first, mask=inside(at0, hidden, live, whole))
        tl.store(target + at1, second, mask=inside(at1, hidden, live, whole))
        tl.store(target + at2, third, mask=inside(at2, hidden, live, whole))
        tl.store(target + at3, fourth, mask=inside(at3, hidden, live, whole))


@triton.jit
def inside(column, hidden, live, whole: tl.constexpr):
    return live if whole else live & (column < hidden)
