"""What select does token by token: a program has the same tokens in every phase."""

from __future__ import annotations

import triton
import triton.language as tl

from .select_problem import end_token, first_token, order_key


@triton.jit
def token_tile(p, start):
    """Places in [T, K] of a tile of tokens, [BT, 1] tokens and [1, BK] columns, and which exist."""
    token = (start + tl.arange(0, p.block_t))[:, None]
    column = tl.arange(0, p.block_k)[None, :]
    live = (token < end_token(p)) & (column < p.columns)
    return token * p.columns + column, token, column, live


@triton.jit
def column_of(values, p, start, j, other):
    """[BT, 1]: column j of a tile of tokens."""
    token = (start + tl.arange(0, p.block_t))[:, None]
    return tl.load(values + token * p.columns + j, mask=token < end_token(p), other=other)


@triton.jit
def clean_ids(p):
    """expert_ids of all candidates: E where out of range, padding or listed before."""
    real_tokens = 0
    for start in range(first_token(p), end_token(p), p.block_t):
        at, token, column, live = token_tile(p, start)
        ids = tl.load(p.ids + at, mask=live, other=-1)
        used = (ids >= 0) & (ids < p.experts)
        for j in range(p.columns - 1):
            used &= (ids != column_of(p.ids, p, start, j, -1)) | (column <= j)
        if p.mask is not None:
            real = tl.load(p.mask + token, mask=token < end_token(p), other=0) != 0
            real_tokens += tl.sum(real.to(tl.int32))
            used &= real
        tl.store(p.expert_ids + at, tl.where(used, ids.to(tl.int32), p.experts), mask=live)
        if p.state == "asked":
            tl.store(p.rows + at, used.to(tl.int32), mask=live)
        elif p.state == "reroute":
            tl.store(p.rows + at, tl.zeros([p.block_t, p.block_k], tl.int32), mask=live)
        else:
            tl.store(p.rows + at, tl.full([p.block_t, p.block_k], -1, tl.int32), mask=live)
            weights = tl.load(p.weights + at, mask=live, other=0.0)
            tl.store(p.out_weights + at, tl.where(used, weights, 0.0), mask=live)
    if p.mask is not None and first_token(p) < p.tokens:
        tl.store(p.reports + tl.program_id(0), real_tokens)


@triton.jit
def clear_rows(p):
    """-1 in row_tokens, all programs together."""
    each: tl.constexpr = 1024
    start = tl.program_id(0).to(tl.int64) * each
    while start < p.num_rows:
        row = start + tl.arange(0, each)
        tl.store(p.row_tokens + row, tl.full([each], -1, tl.int32), mask=row < p.num_rows)
        start += tl.num_programs(0) * each


@triton.jit
def ask_on(p):
    """Token Reroute: a token that holds fewer than top_k asks its best experts that it has not."""
    asked = 0
    for start in range(first_token(p), end_token(p), p.block_t):
        at, _, _, live = token_tile(p, start)
        ids = tl.load(p.expert_ids + at, mask=live, other=p.experts)
        state = tl.load(p.rows + at, mask=live, other=0)
        wanted = p.top_k - tl.sum((state == 1).to(tl.int32), 1)[:, None]
        fresh = ((state == 0) & (ids < p.experts)).to(tl.int32)
        asking = (fresh == 1) & (tl.cumsum(fresh, 1) <= wanted)
        tl.debug_barrier()
        tl.store(p.rows + at, tl.full([p.block_t, p.block_k], 1, tl.int32), mask=asking)
        asked += tl.sum(asking.to(tl.int32))
    if first_token(p) < p.tokens:
        tl.store(p.reports + p.groups + tl.program_id(0), asked)


@triton.jit
def any_asked(p):
    """After a barrier: whether ask_on has found anyone."""
    group = tl.arange(0, p.block_g)
    asked = tl.zeros([p.block_g], tl.int32)
    for start in range(0, p.groups, p.block_g):
        reports = p.reports + p.groups + start + group
        asked += tl.load(reports, mask=start + group < p.groups, other=0)
    return tl.sum(asked, 0) > 0


@triton.jit
def settle(p, limit: tl.constexpr):
    """Ends the competition: who holds keeps 1, all others get -1; a pair never asked gets E.

    ``limit``: a token keeps its most_per_token best, ties to the lower expert.
    """
    for start in range(first_token(p), end_token(p), p.block_t):
        at, _, _, live = token_tile(p, start)
        state = tl.load(p.rows + at, mask=live, other=0)
        held = state == 1
        if limit:
            ids = tl.load(p.expert_ids + at, mask=live, other=p.experts)
            key = order_key(tl.load(p.scores + at, mask=live, other=0.0))
            rank = tl.zeros([p.block_t, p.block_k], tl.int32)
            for j in range(p.columns):
                rival = order_key(column_of(p.scores, p, start, j, 0.0))
                lower = column_of(p.expert_ids, p, start, j, 0) < ids
                before = (rival > key) | ((rival == key) & lower)
                rank += (before & (column_of(p.rows, p, start, j, 0) == 1)).to(tl.int32)
            held &= rank < p.most_per_token
        tl.debug_barrier()
        if p.state == "reroute":
            unused = tl.zeros([p.block_t, p.block_k], tl.int32) + p.experts
            tl.store(p.expert_ids + at, unused, mask=live & (state == 0))
        tl.store(p.rows + at, tl.where(held, 1, -1), mask=live)
        weights = tl.load(p.weights + at, mask=live, other=0.0)
        tl.store(p.out_weights + at, tl.where(held, weights, 0.0), mask=live)


@triton.jit
def renormalize(p, kept_weight_sum):
    """Rescales each token's kept weights to kept_weight_sum."""
    for start in range(first_token(p), end_token(p), p.block_t):
        at, _, _, live = token_tile(p, start)
        weights = tl.load(p.out_weights + at, mask=live, other=0.0)
        # In float64, so that the order of addition does not show in float32.
        total = tl.maximum(tl.sum(weights.to(tl.float64), 1), 1e-20).to(tl.float32)
        scaled = tl.div_rn(weights, total[:, None] + tl.zeros_like(weights)) * kept_weight_sum
        tl.debug_barrier()
        tl.store(p.out_weights + at, scaled, mask=live)
