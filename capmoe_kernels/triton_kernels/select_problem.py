"""What select's phases share: the arguments, where their work lies, and who ranks before whom."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63))
HIGHEST = tl.constexpr(2**63 - 1)


class Problem(NamedTuple):
    """Pointers and sizes; from ``policy`` on, what is known when the kernel is compiled."""

    ids: Any  # [T, K]
    weights: Any  # [T, K]
    scores: Any  # [T, K]
    mask: Any  # [T] or None
    priority: Any  # [T] or None

    expert_ids: Any
    out_weights: Any
    rows: Any  # until rows are given: 1 held or asking, -1 refused, 0 not asked, in some states
    row_tokens: Any
    offsets: Any
    counts: Any
    demand: Any

    keys: Any  # [T * K]: those of pairs that compete, by expert, in token order
    pairs: Any  # [T * K]: their places in [T, K]
    starts: Any  # [E + 1]: where an expert's begin in keys and pairs
    asks: Any  # [G, E]: pairs that each of the G programs with tokens has of an expert
    top_asks: Any  # [G, E]: those of the top-k
    cells: Any  # [G, BT, BE] of a few bytes
    reports: Any  # [2, G]: real tokens; pairs that ask anew

    tokens: Any
    columns: Any
    experts: Any
    top_k: Any
    num_rows: Any
    span: Any  # tokens of a program
    groups: Any  # G, programs that have tokens
    bound: Any
    numerator: Any  # of C over real tokens, where it is for the device to compute
    rounding: Any
    denominator: Any
    unit: Any  # experts per budget
    most_per_token: Any
    hash_start: Any
    padded_rows: Any
    alignment: Any

    policy: Any
    by_factor: Any  # C is of the real tokens' number
    state: Any  # "none", "asked" or "reroute": what rows hold meanwhile
    topk_first: Any
    sharing: Any  # experts share budgets
    padded: Any
    cell: Any  # the type of cells
    block_t: Any  # of a tile: tokens,
    block_k: Any  # columns,
    block_e: Any  # experts,
    block_g: Any  # programs,
    block_l: Any  # listed pairs


@triton.jit
def first_token(p):
    return tl.program_id(0) * p.span


@triton.jit
def end_token(p):
    return tl.minimum(first_token(p) + p.span, p.tokens)


@triton.jit
def capacity(p):
    """C of an expert, once all programs have counted their real tokens."""
    bound = p.bound.to(tl.int64)
    if p.mask is None:
        return bound
    group = tl.arange(0, p.block_g)
    real = tl.zeros([p.block_g], tl.int32)
    for start in range(0, p.groups, p.block_g):
        real += tl.load(p.reports + start + group, mask=start + group < p.groups, other=0)
    all_real = tl.sum(real, 0).to(tl.int64)
    if p.by_factor:
        bound = (p.numerator * all_real + p.rounding) // p.denominator
    return tl.minimum(bound, all_real)


@triton.jit
def order_key(score):
    """int32 in the order of the floats. -0 equals 0, NaN equals -inf."""
    score = tl.where(score == 0, 0.0, tl.where(score == score, score, -float("inf")))
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def mix(x):
    """Wellons' lowbias32: an avalanche of the bits of a 32-bit integer, and a bijection."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def pair_key(p, token, expert, column, live):
    """The higher is kept first; the class and ties are not in it."""
    if p.policy == "score":
        at = token * p.columns + column
        policy = order_key(tl.load(p.scores + at, mask=live, other=0.0))
    elif p.policy == "keep_first":
        policy = ~token
    elif p.policy == "keep_last":
        policy = token
    else:
        start = p.hash_start.to(tl.uint32, bitcast=True)
        hashed = mix(mix(start + token.to(tl.uint32)) + expert.to(tl.uint32))
        policy = (hashed ^ 0x80000000).to(tl.int32, bitcast=True)
    policy += tl.zeros_like(column)
    if p.topk_first:
        policy = policy.to(tl.int64) + ((column < p.top_k).to(tl.int64) << 32)
    return policy
