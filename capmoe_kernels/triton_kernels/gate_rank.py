"""What ranks the experts of a few tokens, from their logits as a program loads them."""

from __future__ import annotations

import triton
import triton.language as tl

from .gate_entry import LARGEST_FLOAT
from .gate_groups import in_best_groups
from .gate_score import score, sum_of_powers


@triton.jit
def in_rows(x):
    """[parts, R, lanes, vector], as it is loaded, to [R, slots]."""
    slots: tl.constexpr = x.shape[0] * x.shape[2] * x.shape[3]
    return tl.reshape(tl.permute(x, [1, 0, 2, 3]), [x.shape[1], slots])


@triton.jit
def expert_of(slot, group_size, group_slots: tl.constexpr, grouped: tl.constexpr):
    """A group has a power of two of slots."""
    return slot // group_slots * group_size + slot % group_slots if grouped else slot


@triton.jit
def loaded_experts(
    group_size,
    num_groups,
    group_slots: tl.constexpr,
    grouped: tl.constexpr,
    parts: tl.constexpr,
    lanes: tl.constexpr,
    vector: tl.constexpr,
):
    """[parts, 1, lanes, vector]: experts in the order of loads, and which of them there are.

    A thread loads 16 bytes of a row at a time, its neighbours the next: whole sectors.
    """
    part = tl.arange(0, parts)[:, None, None, None]
    lane = tl.arange(0, lanes)[None, None, :, None]
    slot = (part * lanes + lane) * vector + tl.arange(0, vector)[None, None, None, :]
    real = slot < group_size * num_groups
    if grouped:
        real = (slot % group_slots < group_size) & (slot // group_slots < num_groups)
    return expert_of(slot, group_size, group_slots, grouped), real


@triton.jit
def judged(finite, added, largest, total, sigmoid: tl.constexpr):
    """Scores, with bias where there is any, -inf where forbidden."""
    value = score(finite, largest, total, sigmoid)
    if added is not None:
        value += added
    # NaN is not above -inf.
    usable = (finite > -float("inf")) & (value > -float("inf"))
    return tl.where(usable, value, -float("inf"))


@triton.jit
def rank(
    x,  # [R, N]
    bias,
    loaded_expert,  # [parts, 1, lanes, vector]
    real,
    topk_groups,
    groups: tl.constexpr,
    topk_groups_slots: tl.constexpr,
    half: tl.constexpr,
    sigmoid: tl.constexpr,
    top2_sum: tl.constexpr,
):
    """What ranks, -inf where forbidden; its best, [R, 1]; and what scores are made with."""
    x = tl.where(x > -float("inf"), x, -float("inf")) + 0.0  # NaN forbids, and -0 becomes 0
    finite = tl.minimum(x, LARGEST_FLOAT)
    largest = tl.max(finite, axis=1, keep_dims=True)
    total = 1.0 if sigmoid else sum_of_powers(finite, largest)
    rank_by = x if half else finite
    judged_by = finite
    if bias is not None:
        # As many loads as of logits, so that the same threads hold the results.
        shape: tl.constexpr = [real.shape[0], x.shape[0], real.shape[2], real.shape[3]]
        source = bias + tl.broadcast_to(loaded_expert, shape)
        added = in_rows(tl.load(source, mask=tl.broadcast_to(real, shape), other=0.0))
        judged_by = judged(finite, added, largest, total, sigmoid)
        rank_by = judged_by
    elif groups > 1 and top2_sum:
        judged_by = judged(finite, None, largest, total, sigmoid)
    if groups > 1:
        usable = in_best_groups(judged_by, topk_groups, groups, topk_groups_slots, top2_sum)
        rank_by = tl.where(usable, rank_by, -float("inf"))
    best_rank = largest
    if bias is not None or groups > 1:
        best_rank = tl.max(rank_by, axis=1, keep_dims=True)
    return rank_by, best_rank, largest, total
