"""The gate of a few tokens by one program. The semantics are those of reference/gate.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .gate_choose import choose, choose_local
from .gate_entry import LARGEST_FLOAT
from .gate_rank import expert_of, in_rows, loaded_experts, rank
from .gate_score import row_sum, score


@triton.jit
def write(
    ids,
    weights,
    scores,
    at,  # [R, width]: indices
    inside,
    expert,
    chosen,  # its score
    denominator,
    scaling,
    renormalize: tl.constexpr,
    by_weight: tl.constexpr,
):
    normalised = chosen if renormalize == "none" else chosen / denominator
    weight = chosen
    if renormalize != "kept":
        weight = normalised * scaling
    tl.store(ids + at, expert, mask=inside)
    tl.store(weights + at, weight, mask=inside)
    tl.store(scores + at, normalised if by_weight else chosen, mask=inside)


@triton.jit
def score_of_chosen(
    row_logits,  # [R, 1]: pointers, None where the logit is what ranks
    real,  # [R, 1]
    used,
    expert,
    rank,
    largest,
    total,
    sigmoid: tl.constexpr,
):
    logit = rank
    if row_logits is not None:
        logit = tl.load(row_logits + expert, mask=used & real, other=0.0).to(tl.float32)
        logit = tl.minimum(logit, LARGEST_FLOAT)
    return tl.where(used, score(logit, largest, total, sigmoid), 0.0)


@triton.jit(
    do_not_specialize=[
        "tokens",
        "stride_vectors",
        "group_vectors",
        "num_groups",
        "topk_groups",
        "top_k",
        "ranked",
        "columns",
        "local_start",
        "local_stop",
    ]
)
def gate_kernel(
    logits: tl.const,  # [tokens, experts]
    bias: tl.const,  # [experts] or None
    ids,  # [tokens, columns]
    weights,
    scores,
    tokens,
    stride_vectors,  # of a row of logits
    group_vectors,  # experts of a group
    num_groups,
    topk_groups,
    top_k,
    ranked,  # columns of any experts; the others are of local ones
    columns,
    local_start,
    local_stop,
    scaling: tl.float32,
    rows: tl.constexpr,
    vector: tl.constexpr,
    lanes: tl.constexpr,  # that share a row
    group_slots: tl.constexpr,
    groups_slots: tl.constexpr,  # at least num_groups
    topk_groups_slots: tl.constexpr,
    width: tl.constexpr,  # at least ranked
    local_width: tl.constexpr,  # at least columns - ranked; 0: all are ranked
    entry: tl.constexpr,  # "wide", "near" or "half"; not "near" where there are local ones
    sigmoid: tl.constexpr,
    renormalize: tl.constexpr,
    by_weight: tl.constexpr,
    top2_sum: tl.constexpr,
):
    slots: tl.constexpr = group_slots * groups_slots
    parts: tl.constexpr = slots // (lanes * vector)
    grouped: tl.constexpr = groups_slots > 1
    half: tl.constexpr = entry == "half"
    stride = stride_vectors.to(tl.int64) * vector
    group_size = group_vectors * vector
    experts = group_size * num_groups

    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    token = row[None, :, None, None]
    loaded_expert, real = loaded_experts(
        group_size, num_groups, group_slots, grouped, parts, lanes, vector
    )
    source = logits + token * stride + loaded_expert
    x = in_rows(tl.load(source, mask=real & (token < tokens), other=-float("inf"))).to(tl.float32)
    rank_by, best_rank, largest, total = rank(
        x, bias, loaded_expert, real, topk_groups,
        groups_slots, topk_groups_slots, half, sigmoid, top2_sum,
    )  # fmt: skip
    expert = expert_of(tl.arange(0, slots)[None, :], group_size, group_slots, grouped)
    if local_width > 0:
        first, more = choose_local(
            rank_by, expert, ranked, local_start, local_stop,
            half, width, local_width, lanes, vector,
        )  # fmt: skip
    else:
        first = choose(rank_by, expert, best_rank, ranked, entry, width, lanes, vector)

    token = row[:, None]
    row_logits = None if bias is None else logits + token * stride
    column = tl.arange(0, width)[None, :]
    scored = score_of_chosen(row_logits, token < tokens, *first, largest, total, sigmoid)
    denominator = 1.0
    if renormalize != "none":
        denominator = tl.maximum(row_sum(tl.where(column < top_k, scored, 0.0)), 1e-20)
    write(
        ids, weights, scores, token * columns + column, (column < ranked) & (token < tokens),
        tl.where(first[0], first[1], experts), scored, denominator, scaling,
        renormalize, by_weight,
    )  # fmt: skip
    if local_width > 0:
        column = ranked + tl.arange(0, local_width)[None, :]
        scored = score_of_chosen(row_logits, token < tokens, *more, largest, total, sigmoid)
        write(
            ids, weights, scores, token * columns + column, (column < columns) & (token < tokens),
            tl.where(more[0], more[1], experts), scored, denominator, scaling,
            renormalize, by_weight,
        )  # fmt: skip
