"""gate: a warp scores and ranks a few tokens, its threads sharing rows of logits."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .gate_kernel import gate_kernel

_MOST_EXPERTS = 4096
_LANES = 32
_MOST_WARPS = 16
# Logits of a thread. Where a GPU has threads to spare, a short program ends sooner; where there are
# more programs than it runs at once, fewer instructions per token count.
_SHORT, _LONG = 8, 32
_SPARE_PROGRAMS = 512


def gate(
    router_logits: Tensor,
    selection_bias: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: str,
    scaling: float,
    num_groups: int,
    topk_groups: int,
    group_score: str,
    drop_score: str,
    expand: str,
    extra: int,
    local_start: int,
    local_stop: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op table in ops.py."""
    if router_logits.stride(1) != 1:
        router_logits = router_logits.contiguous()
    tokens, experts = router_logits.shape
    if experts > _MOST_EXPERTS:
        raise ValueError(f"the Triton gate takes at most {_MOST_EXPERTS} experts, got {experts}")
    is_local = expand == "local"
    columns = min(experts, top_k + (local_stop - local_start if is_local else extra))
    ids = router_logits.new_empty((tokens, columns), dtype=torch.int32)
    weights = torch.empty_like(ids, dtype=torch.float32)
    scores = torch.empty_like(weights)
    if ids.numel() == 0:
        return ids, weights, scores
    if topk_groups >= num_groups:
        num_groups = topk_groups = 1

    stride, group_size = router_logits.stride(0), experts // num_groups
    vector = _vector(router_logits.element_size(), stride, group_size)
    group_slots, groups_slots = (triton.next_power_of_2(n) for n in (group_size, num_groups))
    slots = group_slots * groups_slots
    ranked = top_k if is_local else columns
    width = triton.next_power_of_2(ranked)
    lanes = _lanes(slots, tokens)
    rows = _LANES // lanes
    gate_kernel[(triton.cdiv(tokens, rows),)](
        router_logits,
        None if selection_bias is None else selection_bias.contiguous(),
        ids,
        weights,
        scores,
        tokens,
        stride // vector,
        group_size // vector,
        num_groups,
        topk_groups,
        top_k,
        ranked,
        columns,
        local_start,
        local_stop,
        scaling,
        rows,
        vector,
        min(lanes, slots // vector),
        group_slots,
        groups_slots,
        triton.next_power_of_2(topk_groups),
        width,
        triton.next_power_of_2(columns - ranked) if columns > ranked else 0,
        _entry(router_logits.dtype, selection_bias is not None, is_local, width, slots),
        scoring == "sigmoid",
        renormalize,
        drop_score == "weight" and renormalize != "none",
        group_score == "top2_sum",
        num_warps=min(_MOST_WARPS, max(1, slots // (_LANES * _LONG))),
    )
    return ids, weights, scores


def _vector(element_size: int, stride: int, group_size: int) -> int:
    """Logits that one load takes: up to 16 bytes, as far as rows and groups are multiples."""
    vector = 16 // element_size
    while stride % vector or group_size % vector:
        vector //= 2
    return vector


def _lanes(slots: int, tokens: int) -> int:
    """Threads that share a row."""
    short, long = (min(_LANES, max(1, slots // most)) for most in (_SHORT, _LONG))
    return short if triton.cdiv(tokens, _LANES // short) <= _SPARE_PROGRAMS else long


def _entry(dtype: torch.dtype, has_bias: bool, is_local: bool, width: int, slots: int) -> str:
    """The kind of entry, see gate_entry.py."""
    if dtype != torch.float32 and not has_bias:
        return "half"
    # Near entries do not pay where there is little to sort, or what is chosen is likely to be far.
    return "wide" if slots <= _SHORT or is_local or 2 * width > slots else "near"
