"""Where more ask than a budget holds: who stays, found by bisection of the key that separates."""

from __future__ import annotations

import triton
import triton.language as tl

from .select_problem import HIGHEST, LOWEST, capacity

# Pairs of a budget are ranked by three values, the higher first: class, key, place.
CLASS = tl.constexpr(0)
KEY = tl.constexpr(1)
PLACE = tl.constexpr(2)


@triton.jit
def value_of(p, begin, i, live, rank: tl.constexpr):
    """A value of the listed pairs begin + i."""
    if rank == KEY:
        value = tl.load(p.keys + begin + i, mask=live, other=0)
    elif rank == PLACE and not p.sharing:
        value = -i  # lists are in token order
    else:
        pair = tl.load(p.pairs + begin + i, mask=live, other=0)
        token = pair // p.columns
        if rank == CLASS:
            value = tl.load(p.priority + token, mask=live, other=0)
        else:
            expert = tl.load(p.expert_ids + pair, mask=live, other=0)
            value = -(token.to(tl.int64) * p.experts + expert)
    return value


@triton.jit
def lowest_of(dtype: tl.constexpr):
    return LOWEST if dtype == tl.int64 else -0x80000000


@triton.jit
def tied(p, begin, i, live, least_class, least_key, rank: tl.constexpr):
    """Which of the pairs have the separating class, and key, before ``rank``."""
    if rank > CLASS and p.priority is not None:
        live &= value_of(p, begin, i, live, CLASS) == least_class
    if rank > KEY:
        live &= value_of(p, begin, i, live, KEY) == least_key
    return live


@triton.jit
def tied_value(p, begin, i, count, least_class, least_key, rank: tl.constexpr):
    """The value of those tied before ``rank``; the lowest there is for all others."""
    live = tied(p, begin, i, i < count, least_class, least_key, rank)
    value = value_of(p, begin, i, live, rank)
    return tl.where(live, value, lowest_of(value.dtype)), live


@triton.jit
def separate(p, begin, count, take, least_class, least_key, rank: tl.constexpr):
    """Of the pairs tied before ``rank``, the least value of the first ``take``.

    -> the value, how many with just that value are to be taken, and whether these are all.
    """
    own = tl.arange(0, p.block_l)
    # The first block's stay in registers.
    first, live = tied_value(p, begin, own, count, least_class, least_key, rank)
    high = tl.max(first, 0)
    low = tl.min(tl.where(live, first, high), 0)
    for start in range(p.block_l, count, p.block_l):
        more, live = tied_value(p, begin, start + own, count, least_class, least_key, rank)
        high = tl.maximum(high, tl.max(more, 0))
        low = tl.minimum(low, tl.min(tl.where(live, more, high), 0))
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # of the two, the higher; without overflow
        above = (first >= middle).to(tl.int32)
        for start in range(p.block_l, count, p.block_l):
            more, _ = tied_value(p, begin, start + own, count, least_class, least_key, rank)
            above += (more >= middle).to(tl.int32)
        reached = tl.sum(above, 0)
        low = tl.where(reached >= take, middle, low)
        high = tl.where(reached == take, middle, tl.where(reached < take, middle - 1, high))
    _, live = tied_value(p, begin, own, count, least_class, least_key, rank)
    above, equal = (first > low).to(tl.int32), (live & (first == low)).to(tl.int32)
    for start in range(p.block_l, count, p.block_l):
        more, live = tied_value(p, begin, start + own, count, least_class, least_key, rank)
        above += (more > low).to(tl.int32)
        equal += (live & (more == low)).to(tl.int32)
    take -= tl.sum(above, 0)
    return low.to(tl.int64), take, tl.sum(equal, 0) == take


@triton.jit
def find_cut(p, begin, count, budget):
    """The least class, key and place of the first ``budget`` > 0 of ``count`` listed pairs."""
    least_class = tl.full([], LOWEST, tl.int64)
    least_key, least_place = least_class, least_class
    take = budget.to(tl.int32)
    settled = budget < 0
    if p.priority is not None:
        least_class, take, settled = separate(p, begin, count, take, 0, 0, CLASS)
    if not settled:
        least_key, take, settled = separate(p, begin, count, take, least_class, 0, KEY)
    if not settled:
        least_place, take, settled = separate(p, begin, count, take, least_class, least_key, PLACE)
    return least_class, least_key, least_place


@triton.jit
def stays(p, begin, i, live, least_class, least_key, least_place):
    """Which of the listed pairs are within their budget."""
    above = live & False
    if p.priority is not None:
        value = value_of(p, begin, i, live, CLASS)
        above |= live & (value > least_class)
        live &= value == least_class
    key = value_of(p, begin, i, live, KEY)
    above |= live & (key > least_key)
    live &= key == least_key
    return above | (live & (value_of(p, begin, i, live, PLACE) >= least_place))


@triton.jit
def give_rows(p, expert, pair, kept, given):
    """Rows of those listed of one expert who stay; ``given`` before them. -> how many."""
    row = tl.load(p.offsets + expert) + given + tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(p.rows + pair, row, mask=kept)
    inside = (row >= 0) & (row < p.num_rows)
    tl.store(p.row_tokens + row, pair // p.columns, mask=kept & inside)
    return tl.sum(kept.to(tl.int32), 0)


@triton.jit
def decide(p, giving: tl.constexpr):
    """Every budget that is exceeded. ``giving``: rows to who stays, else -1 to who does not."""
    budget = capacity(p) * p.unit
    for first in range(tl.program_id(0) * p.unit, p.experts, tl.num_programs(0) * p.unit):
        begin = tl.load(p.starts + first)
        listed = tl.load(p.starts + first + p.unit) - begin
        if listed > budget:
            least_class = tl.full([], HIGHEST, tl.int64)
            least_key, least_place = least_class, least_class
            if budget > 0:
                least_class, least_key, least_place = find_cut(p, begin, listed, budget)
            given = 0
            for start in range(0, listed, p.block_l):
                i = start + tl.arange(0, p.block_l)
                live = i < listed
                kept = stays(p, begin, i, live, least_class, least_key, least_place)
                pair = tl.load(p.pairs + begin + i, mask=live, other=0)
                if giving:
                    given += give_rows(p, first, pair, kept, given)
                    none = tl.zeros([p.block_l], tl.float32)
                    tl.store(p.out_weights + pair, none, mask=live & ~kept)
                else:
                    tl.store(p.rows + pair, tl.full([p.block_l], -1, tl.int32), mask=live & ~kept)
