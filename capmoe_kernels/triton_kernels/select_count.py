"""Counts per expert, and from them every pair's place: in token order, all programs together."""

from __future__ import annotations

import triton
import triton.language as tl

from .select_problem import capacity, end_token, first_token, pair_key
from .select_tokens import token_tile


@triton.jit
def expert_tile(p, start, expert_start):
    """[BE, BT]: the column in which a token asks for or holds an expert, or -1.

    A sparse table of the program's own, in memory: comparing every column with every expert would
    be several times the instructions. A thread has several tokens of an expert, to add them up.
    """
    size: tl.constexpr = p.block_e * p.block_t
    cells = p.cells.to(tl.pointer_type(p.cell)) + tl.program_id(0).to(tl.int64) * size
    places = tl.arange(0, p.block_e)[:, None] * p.block_t + tl.arange(0, p.block_t)[None, :]
    at, token, column, live = token_tile(p, start)
    expert = tl.load(p.expert_ids + at, mask=live, other=p.experts) - expert_start
    live &= (expert >= 0) & (expert < p.block_e) & (expert < p.experts - expert_start)
    if p.state != "none":
        live &= tl.load(p.rows + at, mask=live, other=0) == 1
    tl.debug_barrier()
    tl.store(cells + places, tl.full([p.block_e, p.block_t], -1, p.cell))
    tl.debug_barrier()
    tl.store(cells + expert * p.block_t + token - start, column.to(p.cell), mask=live)
    tl.debug_barrier()
    return tl.load(cells + places).to(tl.int32)


@triton.jit
def count(p, tops: tl.constexpr):
    """asks of the program's own tokens and, where ``tops``, how many are of the top-k."""
    first, end = first_token(p), end_token(p)
    row = tl.program_id(0).to(tl.int64) * p.experts
    if first < end:
        for expert_start in range(0, p.experts, p.block_e):
            asks, top_asks = tl.zeros([p.block_e], tl.int32), tl.zeros([p.block_e], tl.int32)
            for start in range(first, end, p.block_t):
                column = expert_tile(p, start, expert_start)
                asks += tl.sum((column >= 0).to(tl.int32), 1)
                if tops:
                    top_asks += tl.sum(((column >= 0) & (column < p.top_k)).to(tl.int32), 1)
            expert = expert_start + tl.arange(0, p.block_e)
            tl.store(p.asks + row + expert, asks, mask=expert < p.experts)
            if tops:
                tl.store(p.top_asks + row + expert, top_asks, mask=expert < p.experts)


@triton.jit
def add_up(p, asks, expert):
    """([BE] of all programs, [BE] of those before this one)."""
    total, before = tl.zeros([p.block_e], tl.int32), tl.zeros([p.block_e], tl.int32)
    for start in range(0, p.groups, p.block_g):
        group = (start + tl.arange(0, p.block_g))[:, None]
        inside = (group < p.groups) & (expert < p.experts)[None, :]
        row = asks + group.to(tl.int64) * p.experts
        asked = tl.load(row + expert[None, :], mask=inside, other=0)
        total += tl.sum(asked, 0)
        before += tl.sum(tl.where(group < tl.program_id(0), asked, 0), 0)
    return total, before


@triton.jit
def write_demand(p, tops: tl.constexpr):
    """demand_per_expert, by the last program."""
    if tl.program_id(0) == tl.num_programs(0) - 1:
        for start in range(0, p.experts, p.block_e):
            expert = start + tl.arange(0, p.block_e)
            demand, _ = add_up(p, p.top_asks if tops else p.asks, expert)
            tl.store(p.demand + expert, demand, mask=expert < p.experts)


@triton.jit
def rows_of(p, count):
    """Rows that an expert owns."""
    rows = (count + p.alignment - 1) // p.alignment * p.alignment
    if p.padded:
        rows = tl.zeros_like(count) + p.padded_rows
    return rows


@triton.jit
def place(p, listing: tl.constexpr, giving: tl.constexpr):
    """Gives each pair that holds its place, once every program has counted.

    ``giving``: a row, and its weight. ``listing``: a place among those who compete for the expert.
    Both: a row where the expert is within its capacity, else a place; no more than that will stay.
    """
    first, end = first_token(p), end_token(p)
    if first < p.tokens:
        limit = (p.tokens + 0).to(tl.int64)
        if listing and giving:
            limit = capacity(p)
        row_end, list_end = 0, 0
        for expert_start in range(0, p.experts, p.block_e):
            expert = expert_start + tl.arange(0, p.block_e)
            total, before = add_up(p, p.asks, expert)
            over = (total > limit) if giving else (total >= 0)
            kept = tl.where(over, limit, total.to(tl.int64)).to(tl.int32) if listing else total
            row_start = row_end + tl.zeros_like(total)
            list_start = list_end + tl.zeros_like(total)
            if giving:
                size = tl.where(expert < p.experts, rows_of(p, kept), 0)
                row_start += tl.cumsum(size, 0) - size
                row_end += tl.sum(size, 0)
            if listing:
                size = tl.where(over, total, 0)
                list_start += tl.cumsum(size, 0) - size
                list_end += tl.sum(size, 0)
            if tl.program_id(0) == 0:
                if giving:
                    tl.store(p.offsets + expert, row_start, mask=expert < p.experts)
                    tl.store(p.counts + expert, kept, mask=expert < p.experts)
                if listing:
                    tl.store(p.starts + expert, list_start, mask=expert < p.experts)
            for start in range(first, end, p.block_t):
                column = expert_tile(p, start, expert_start)
                held = (column >= 0).to(tl.int32)
                number = before[:, None] + tl.cumsum(held, 1) - 1
                before += tl.sum(held, 1)
                token = (start + tl.arange(0, p.block_t))[None, :]
                at = token * p.columns + column
                if giving:
                    gives = (held == 1) & ~over[:, None] if listing else held == 1
                    row = row_start[:, None] + number
                    tl.store(p.rows + at, row, mask=gives)
                    gives &= (row >= 0) & (row < p.num_rows)
                    tl.store(p.row_tokens + row, token + tl.zeros_like(row), mask=gives)
                if listing:
                    lists = (held == 1) & over[:, None] if giving else held == 1
                    to = list_start[:, None] + number
                    tl.store(p.pairs + to, at, mask=lists)
                    key = pair_key(p, token, expert[:, None], column, lists)
                    tl.store(p.keys + to, key, mask=lists)
        if tl.program_id(0) == 0:
            if giving:
                tl.store(p.offsets + p.experts, row_end)
            if listing:
                tl.store(p.starts + p.experts, list_end)
