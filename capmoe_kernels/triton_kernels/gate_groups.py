"""Group-limited routing: which contiguous groups of experts a token may use."""

from __future__ import annotations

import triton
import triton.language as tl

from .gate_entry import no_entry, wide_entries
from .gate_sort import best


@triton.jit
def best_two(first, second, other_first, other_second):
    second = tl.maximum(tl.minimum(first, other_first), tl.maximum(second, other_second))
    return tl.maximum(first, other_first), second


@triton.jit
def group_values(members, top2_sum: tl.constexpr):
    """[R, G, N] -> [R, G]: what each group counts as; members are -inf where forbidden."""
    if not top2_sum or members.shape[2] == 1:
        return tl.max(members, axis=2)
    else:
        shape: tl.constexpr = [members.shape[0], members.shape[1], 2, members.shape[2] // 2]
        pairs = tl.reshape(members, shape)
        first, second = tl.reduce((tl.max(pairs, axis=2), tl.min(pairs, axis=2)), 2, best_two)
        return tl.where(second > -float("inf"), first + second, first)


@triton.jit
def in_best_groups(
    judged_by,  # [R, N], group by group, -inf where forbidden
    topk_groups,
    groups: tl.constexpr,
    width: tl.constexpr,  # at least topk_groups
    top2_sum: tl.constexpr,
):
    """[R, N] bool. Ties go to the lower group."""
    rows: tl.constexpr = judged_by.shape[0]
    slots: tl.constexpr = judged_by.shape[1]
    shape: tl.constexpr = [rows, groups, slots // groups]
    values = group_values(tl.reshape(judged_by, shape), top2_sum)
    group = tl.arange(0, groups)[None, :]
    entries = wide_entries(values, group)
    order = best(entries, width)
    is_last = tl.arange(0, width)[None, :] == topk_groups - 1
    last = tl.max(tl.where(is_last, order, no_entry(order)), axis=1, keep_dims=True)
    return tl.reshape(tl.broadcast_to((entries >= last)[:, :, None], shape), [rows, slots])
