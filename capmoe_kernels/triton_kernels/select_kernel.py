"""One launch of select: a program's own tokens, then budgets, with barriers of the grid between."""

from __future__ import annotations

import triton
import triton.language as tl

from .select_budget import decide
from .select_count import count, place, write_demand
from .select_problem import Problem
from .select_sync import close_barrier, grid_barrier, open_barrier
from .select_tokens import any_asked, ask_on, clean_ids, clear_rows, renormalize, settle

_SYNC_WORDS = 8  # of 64 bits, at the beginning of the workspace
SYNC_WORDS = tl.constexpr(_SYNC_WORDS)


def work_words(listed: int, experts: int, groups: int, cell_bytes: int) -> int:
    """Words of 64 bits that the kernel works in; each of the programs needs some for its cells."""
    lists = listed + (listed + 1) // 2
    counts = groups + (experts + 2) // 2 + groups * experts
    return _SYNC_WORDS + groups * cell_bytes // 8 + lists + counts


@triton.jit
def compete(p, sync, passed, rounds):
    """Budgets that are exceeded drop pairs, until nobody asks on. -> barriers passed."""
    done = 0
    more = True
    while more:
        place(p, True, False)
        passed = grid_barrier(sync, passed)
        decide(p, False)
        passed = grid_barrier(sync, passed)
        done += 1
        more = p.state == "reroute" and done < rounds
        if more:
            ask_on(p)
            tl.debug_barrier()
            count(p, False)
            passed = grid_barrier(sync, passed)
            more = any_asked(p)
    return passed


@triton.jit
def recount(p, limited: tl.constexpr):
    """asks of those who are kept."""
    tl.debug_barrier()
    settle(p, limited)
    tl.debug_barrier()
    count(p, False)


# A call of other sizes is no reason to compile again.
_SIZES = ["tokens", "columns", "experts", "top_k", "num_rows", "span", "groups", "bound"]
_SIZES += ["numerator", "rounding", "denominator", "unit", "most_per_token", "hash_start"]
_SIZES += ["padded_rows", "alignment", "rounds", "kept_weight_sum"]


@triton.jit(do_not_specialize=_SIZES)
def select_kernel(
    ids: tl.const,
    weights: tl.const,
    scores: tl.const,
    mask,
    priority,
    expert_ids,
    out_weights,
    rows,
    row_tokens,
    offsets,
    counts,
    demand,
    work,
    tokens,
    columns,
    experts,
    top_k,
    num_rows,
    span,
    groups,
    bound,
    numerator: tl.int64,
    rounding: tl.int64,
    denominator: tl.int64,
    unit,
    most_per_token,
    hash_start,
    padded_rows,
    alignment,
    rounds,
    kept_weight_sum,
    policy: tl.constexpr,
    by_factor: tl.constexpr,
    bounded: tl.constexpr,
    state: tl.constexpr,
    limited: tl.constexpr,
    tops: tl.constexpr,  # demand has counts of its own
    topk_first: tl.constexpr,
    sharing: tl.constexpr,
    padded: tl.constexpr,
    cell: tl.constexpr,
    rescale: tl.constexpr,
    block_t: tl.constexpr,
    block_k: tl.constexpr,
    block_e: tl.constexpr,
    block_g: tl.constexpr,
    block_l: tl.constexpr,
):
    cells = work + SYNC_WORDS  # first, so that they are aligned
    keys = cells + groups * (block_t * block_e * cell.primitive_bitwidth // 64)
    if not topk_first:
        keys = keys.to(tl.pointer_type(tl.int32))
    listed = tokens * columns if bounded else 0
    pairs = (keys + listed).to(tl.pointer_type(tl.int32))
    reports = pairs + listed
    starts = reports + 2 * groups
    asks = starts + experts + 1
    top_asks = asks + groups.to(tl.int64) * experts
    # As a constexpr, a tuple keeps those members that are known now; the others stay what they are.
    p: tl.constexpr = Problem(
        ids, weights, scores, mask, priority,
        expert_ids, out_weights, rows, row_tokens, offsets, counts, demand,
        keys, pairs, starts, asks, top_asks, cells, reports,
        tokens, columns, experts, top_k, num_rows, span, groups, bound, numerator, rounding,
        denominator, unit, most_per_token, hash_start, padded_rows, alignment,
        policy, by_factor, state, topk_first, sharing, padded, cell,
        block_t, block_k, block_e, block_g, block_l,
    )  # fmt: skip
    open_barrier(work)
    clear_rows(p)
    clean_ids(p)
    tl.debug_barrier()
    if state == "reroute":
        ask_on(p)
        tl.debug_barrier()
    count(p, tops)
    if state != "none" and not bounded:
        recount(p, limited)
    passed = grid_barrier(work, 0)
    write_demand(p, tops)
    if bounded and state == "none":
        place(p, True, True)
        passed = grid_barrier(work, passed)
        decide(p, True)
        if rescale:
            passed = grid_barrier(work, passed)
    else:
        if bounded:
            passed = compete(p, work, passed, rounds)
            recount(p, limited)
            passed = grid_barrier(work, passed)
        place(p, False, True)
        tl.debug_barrier()
    if rescale:
        renormalize(p, kept_weight_sum)
    close_barrier(work, passed)
