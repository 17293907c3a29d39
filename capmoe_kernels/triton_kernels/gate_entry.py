"""Entries: what ranks an expert, as an integer of the same order, above the expert, inverted.

The better entry is the larger integer, ties go to the lower expert, and no two of a row are equal.
What ranks is -inf where the expert is forbidden, and neither NaN nor -0.

Wide entries have 64 bits. Those of 32 bits sort four times faster. They hold all that ranks where
it is of a 16-bit type ("half"). Else they hold how far it is below the row's best ("near"), and
what is further below than fits counts as the lowest: where such an entry is among the chosen, the
wide ones must decide.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The lowest bits of the float of a bfloat16 or float16 are zeros, at least these.
FREE_BITS = tl.constexpr(2**13 - 1)
LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)


@triton.jit
def order_key(x):
    """int32 in the order of floats."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_float(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def no_entry(entries):
    """Below every entry: of an expert that is forbidden to the token, or of none."""
    none: tl.constexpr = -(2 ** (entries.dtype.primitive_bitwidth - 1))
    return none


@triton.jit
def or_none(entries, rank_by):
    return tl.where(rank_by > -float("inf"), entries, no_entry(entries))


@triton.jit
def wide_entries(rank_by, expert):
    low = (~expert).to(tl.uint32).to(tl.int64)
    return or_none((order_key(rank_by).to(tl.int64) << 32) | low, rank_by)


@triton.jit
def wide_decoded(entries):
    """The experts, and what ranks them."""
    return ~entries.to(tl.int32), key_float((entries >> 32).to(tl.int32))


@triton.jit
def half_entries(rank_by, expert):
    return or_none((order_key(rank_by) & ~FREE_BITS) | (FREE_BITS - expert), rank_by)


@triton.jit
def half_decoded(entries):
    bits = key_float(entries & ~FREE_BITS).to(tl.int32, bitcast=True)
    bits &= ~FREE_BITS  # ones of negative ranks
    return FREE_BITS - (entries & FREE_BITS), bits.to(tl.float32, bitcast=True)


@triton.jit
def near_base(largest, slots: tl.constexpr):
    """The key that near entries are counted from: the row's best is at the greatest distance."""
    reach: tl.constexpr = 2**31 // slots - 1
    return tl.maximum(order_key(largest), 2 * reach - 2**31) - reach


@triton.jit
def near_entries(rank_by, expert, base):
    """(key - base) * slots + the inverted expert: a key within ``reach`` of the base fits."""
    slots: tl.constexpr = rank_by.shape[1]
    reach: tl.constexpr = 2**31 // slots - 1
    key = tl.maximum(order_key(rank_by), base - reach)
    return or_none(key * slots + (slots - 1 - expert - base * slots), rank_by)


@triton.jit
def near_decoded(entries, base, slots: tl.constexpr):
    """The experts, what ranks them, and whether an entry was too far below to know more of it."""
    reach: tl.constexpr = 2**31 // slots - 1
    steps: tl.constexpr = tl.standard._log2(slots)
    distance = entries >> steps
    return ~entries & (slots - 1), key_float(distance + base), distance == -reach
