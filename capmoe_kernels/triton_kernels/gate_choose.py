"""Which experts a token's columns are of, from what ranks its experts."""

from __future__ import annotations

import triton
import triton.language as tl

from .gate_entry import (
    LARGEST_FLOAT,
    half_decoded,
    half_entries,
    near_base,
    near_decoded,
    near_entries,
    no_entry,
    wide_decoded,
    wide_entries,
)
from .gate_sort import best


@triton.jit
def own_first(x, lanes: tl.constexpr, vector: tl.constexpr):
    """[R, N] so that what one thread has loaded is together."""
    rows: tl.constexpr = x.shape[0]
    slots: tl.constexpr = x.shape[1]
    y = tl.reshape(x, [rows, slots // (lanes * vector), lanes, vector])
    return tl.reshape(tl.permute(y, [0, 2, 3, 1]), [rows, slots])


@triton.jit
def best_spread(entries, width: tl.constexpr, lanes: tl.constexpr, vector: tl.constexpr):
    """The best, of which each thread holds its share.

    All threads of a row know its best. That would go on, and each would finish all columns, but for
    the gather: the compiler gives its result a layout of its own.
    """
    order = best(own_first(entries, lanes, vector), width)
    if lanes > 1 and width > 1:
        place = tl.broadcast_to(tl.arange(0, width)[None, :], order.shape)
        order = tl.gather(order, place, 1)
    return order


@triton.jit
def entries_of(rank_by, expert, half: tl.constexpr):
    return half_entries(rank_by, expert) if half else wide_entries(rank_by, expert)


@triton.jit
def decoded(order, half: tl.constexpr):
    """Whether a column is used, its expert, and what ranks that."""
    expert, rank = half_decoded(order) if half else wide_decoded(order)
    return order > no_entry(order), expert, tl.minimum(rank, LARGEST_FLOAT)


@triton.jit
def choose(
    rank_by,  # [R, N], -inf where forbidden
    expert,  # [1, N]
    best_rank,  # [R, 1], at least the largest of rank_by
    columns,
    entry: tl.constexpr,
    width: tl.constexpr,  # at least columns
    lanes: tl.constexpr,
    vector: tl.constexpr,
):
    """Each row's best, [R, width]: as decoded()."""
    if entry == "near":
        slots: tl.constexpr = rank_by.shape[1]
        base = near_base(best_rank, slots)
        order = best_spread(near_entries(rank_by, expert, base), width, lanes, vector)
        used = order > no_entry(order)
        chosen, rank, is_far = near_decoded(order, base, slots)
        asked = tl.arange(0, width)[None, :] < columns
        if tl.max((is_far & asked).to(tl.int32)) > 0:
            wide = best_spread(wide_entries(rank_by, expert), width, lanes, vector)
            used, chosen, rank = decoded(wide, False)
        return used, chosen, rank
    else:
        half: tl.constexpr = entry == "half"
        entries = entries_of(rank_by, expert, half)
        return decoded(best_spread(entries, width, lanes, vector), half)


@triton.jit
def choose_local(
    rank_by,
    expert,
    columns,
    start,
    stop,
    half: tl.constexpr,
    width: tl.constexpr,  # at least columns
    local_width: tl.constexpr,
    lanes: tl.constexpr,
    vector: tl.constexpr,
):
    """Each row's best, and the best of [start, stop) that are not among them: twice decoded()."""
    entries = entries_of(rank_by, expert, half)
    none: tl.constexpr = no_entry(entries)
    order = best_spread(entries, width, lanes, vector)
    is_last = tl.arange(0, width)[None, :] == columns - 1
    last = tl.max(tl.where(is_last, order, none), axis=1, keep_dims=True)
    left = (expert >= start) & (expert < stop) & (entries < last)
    more = best_spread(tl.where(left, entries, none), local_width, lanes, vector)
    return decoded(order, half), decoded(more, half)
