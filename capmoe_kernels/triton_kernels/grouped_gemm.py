"""out[row] = act(x[row] weights[expert]^T + bias[expert]), over every expert's rows in one launch.

A program computes one block of one expert's rows and columns, and finds out on the device which.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate


@triton.jit
def find_block(
    expert_offsets,
    tokens_per_expert,
    num_experts,
    columns,
    padded_experts: tl.constexpr,
    together: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """(expert, its rows from the first on, the first row and the first column of this block).

    Blocks are numbered along each expert's rows first, ``together`` of them, then along its
    columns. A program that is left over gets no rows.
    """
    expert = tl.arange(0, padded_experts)
    counts = tl.load(tokens_per_expert + expert, mask=expert < num_experts, other=0)
    blocks = tl.cdiv(tl.maximum(counts, 0), block_rows)
    ends = tl.cumsum(blocks)
    column_blocks = tl.cdiv(columns, block_columns)
    block = tl.program_id(0) // column_blocks
    before = ends <= block
    mine = tl.sum(before.to(tl.int32))
    first = tl.sum(tl.where(before, blocks, 0))
    found = mine < num_experts
    rows = tl.load(tokens_per_expert + mine, mask=found, other=0)
    offset = tl.load(expert_offsets + mine, mask=found, other=0)
    row_blocks = tl.cdiv(rows, block_rows)
    place = tl.program_id(0) - first * column_blocks
    group = place // (together * column_blocks) * together
    size = tl.minimum(together, tl.maximum(row_blocks - group, 1))
    rest = place - group * column_blocks
    skipped = (group + rest % size) * block_rows
    return mine, rows - skipped, offset + skipped, rest // size * block_columns


@triton.jit(do_not_specialize=["tokens", "rows"])
def grouped_gemm_kernel(
    x: tl.const,  # [tokens, depth], read through row_tokens, or [rows, depth]
    row_tokens: tl.const,  # [rows] or None
    weights: tl.const,  # [num_experts, columns or 2 * columns, depth]
    bias: tl.const,  # [num_experts, columns or 2 * columns] or None
    expert_offsets: tl.const,
    tokens_per_expert: tl.const,
    out,  # [rows, columns]
    tokens,
    rows,
    num_experts,
    depth,
    columns,
    gating: tl.constexpr,  # none, concat, interleaved
    activation: tl.constexpr,
    padded_experts: tl.constexpr,
    tensor_cores: tl.constexpr,
    together: tl.constexpr,
    whole_depth: tl.constexpr,  # depth is a multiple of block_depth
    whole_columns: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
):
    expert, left, first_row, first_column = find_block(
        expert_offsets, tokens_per_expert, num_experts, columns,
        padded_experts, together, block_rows, block_columns,
    )  # fmt: skip
    if left <= 0:
        return
    gated: tl.constexpr = gating != "none"
    lane_row = tl.arange(0, block_rows)
    row = first_row + lane_row
    live = (lane_row < left) & (row >= 0) & (row < rows)
    if row_tokens is None:
        token, read = row, live
    else:
        token = tl.load(row_tokens + row, mask=live, other=-1)
        read = (token >= 0) & (token < tokens)
    k = tl.arange(0, block_depth)
    sources = x + token.to(tl.int64)[:, None] * depth + k[None, :]
    column = first_column + tl.arange(0, block_columns)
    # Beyond the last column its weights are read again, which costs no predicate, and not stored.
    known = column if whole_columns else tl.minimum(column, columns - 1)
    weight_row = known * 2 if gating == "interleaved" else known
    from_gate_to_up = 1 if gating == "interleaved" else columns
    expert = expert.to(tl.int64)
    weights += expert * depth * (columns * 2 if gated else columns)
    gate_from = weights + weight_row.to(tl.int64)[None, :] * depth + k[:, None]
    up_from = gate_from + tl.full((), from_gate_to_up, tl.int64) * depth if gated else gate_from

    gate = tl.zeros((block_rows, block_columns), dtype=tl.float32)
    up = tl.zeros((block_rows, block_columns), dtype=tl.float32)
    for start in range(0, depth, block_depth):
        if whole_depth:
            a = tl.load(sources, mask=read[:, None], other=0.0)
            b = tl.load(gate_from)
        else:
            inside = start + k < depth
            a = tl.load(sources, mask=read[:, None] & inside[None, :], other=0.0)
            b = tl.load(gate_from, mask=inside[:, None], other=0.0)
        gate = multiply(a, b, gate, tensor_cores)
        if gated:
            if whole_depth:
                c = tl.load(up_from)
            else:
                c = tl.load(up_from, mask=inside[:, None], other=0.0)
            up = multiply(a, c, up, tensor_cores)
            up_from += block_depth
        sources += block_depth
        gate_from += block_depth

    if bias is not None:
        bias += expert * (columns * 2 if gated else columns)
        gate += tl.load(bias + weight_row).to(tl.float32)[None, :]
        if gated:
            up += tl.load(bias + weight_row + from_gate_to_up).to(tl.float32)[None, :]
    value = activate(gate, up if gated else None, activation)
    target = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    stored = live[:, None] if whole_columns else live[:, None] & (column[None, :] < columns)
    tl.store(target, value.to(out.dtype.element_ty), mask=stored)


@triton.jit
def multiply(a, b, total, tensor_cores: tl.constexpr):
    """total + a @ b. float32 by FMA: tensor cores would round the factors to 11 bits."""
    if tensor_cores:
        return tl.dot(a, b, total)
    # A sum of its own for each step of k: one chain of thousands would lose several bits more. The
    # last argument keeps the compiler from making one chain of the two sums again.
    return total + tl.dot(a, b, input_precision="ieee", max_num_imprecise_acc=1)
