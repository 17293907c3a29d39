"""Capacity and slots: who stays, and in which row (arXiv 2503.05066, equations 6 to 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..bounds import host_capacity
from .priority import policy_key, rank_in_group, rank_in_token

Compete = Callable[[Tensor], Tensor]


def select(
    topk_ids: Tensor,
    weights: Tensor,
    scores: Tensor,
    token_mask: Tensor | None,
    token_priority: Tensor | None,
    num_experts: int,
    top_k: int,
    factor: Sequence[int] | None,
    limit: int | None,
    rounding: str,
    policy: str,
    expand_priority: str,
    max_experts_per_token: int | None,
    reroute_rounds: int,
    experts_per_budget: int,
    seed: int,
    kept_weight_sum: float | None,
    layout: str,
    row_alignment: int,
    num_rows: int,
) -> tuple[Tensor, ...]:
    """See the op table in ops.py."""
    num_tokens, columns = topk_ids.shape
    ids = _clean_ids(topk_ids, token_mask, num_experts)
    bound = host_capacity(num_tokens, num_experts, top_k, factor, limit, rounding)
    capacity = _capacity(token_mask, bound, num_experts, top_k, factor, limit, rounding)
    keys = [policy_key(policy, ids, scores, seed)]
    if expand_priority == "topk_first":
        keys.append((torch.arange(columns, device=ids.device) < top_k).expand_as(ids))
    if token_priority is not None:
        keys.append(token_priority[:, None].expand_as(ids))

    def compete(asking: Tensor) -> Tensor:
        """Of the pairs that ask, those within their expert's, or their device's, budget."""
        budget = torch.where(asking, ids // experts_per_budget, num_experts)
        return asking & (rank_in_group(budget, ids, keys) < capacity * experts_per_budget)

    asked = ids < num_experts
    if reroute_rounds == 1:
        kept = compete(asked)
    else:
        asked, kept = _reroute(asked, top_k, reroute_rounds, compete)
    if max_experts_per_token is not None:
        kept = kept & (rank_in_token(kept, scores, ids) < max_experts_per_token)

    counts = _count(torch.where(kept, ids, num_experts), num_experts)
    offsets = _offsets(counts, num_rows if layout == "padded" else None, row_alignment)
    rows, row_tokens = _rows(ids, kept, counts, offsets, num_rows)
    return (
        torch.where(asked, ids, num_experts).int(),
        _weights(weights, kept, kept_weight_sum),
        rows.int(),
        row_tokens.int(),
        offsets.int(),
        counts.int(),
        _count(ids[:, :top_k], num_experts).int(),
    )


def _clean_ids(topk_ids: Tensor, token_mask: Tensor | None, num_experts: int) -> Tensor:
    """[T, K] int64; E where the pair is unused: out of range, padding, or a repeated expert."""
    ids = topk_ids.long()
    used = (ids >= 0) & (ids < num_experts)
    if token_mask is not None:
        used = used & token_mask[:, None]
    ids = torch.where(used, ids, num_experts)
    ordered, order = ids.sort(dim=1, stable=True)
    repeated = torch.zeros_like(used)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.where(torch.zeros_like(used).scatter(1, order, repeated), num_experts, ids)


def _capacity(
    token_mask: Tensor | None,
    bound: int,
    num_experts: int,
    top_k: int,
    factor: Sequence[int] | None,
    limit: int | None,
    rounding: str,
) -> int | Tensor:
    """min(C, T) of the real tokens: where there is a mask, a tensor, so that nothing waits."""
    if token_mask is None:
        return bound
    real = token_mask.sum(dtype=torch.int64)
    if limit is not None:
        return real.clamp(max=limit)
    if factor is None:
        return real
    numerator = factor[0] * top_k * real
    denominator = factor[1] * num_experts
    if rounding == "ceil":
        numerator = numerator + denominator - 1
    return torch.minimum(numerator // denominator, real)


def _reroute(usable: Tensor, top_k: int, rounds: int, compete: Compete) -> tuple[Tensor, Tensor]:
    """Token Reroute: whoever holds fewer than ``top_k`` asks on; a refusal is final."""
    asked = torch.zeros_like(usable)
    kept = torch.zeros_like(usable)
    # A round in which nobody asks anew changes nothing, and there are so many pairs to ask. More
    # rounds than columns may count: a token may lose late what it held, and only then ask on.
    for _ in range(min(rounds, usable.numel())):
        fresh = usable & ~asked
        wanted = top_k - kept.sum(1, keepdim=True)
        asking = fresh & (fresh.cumsum(1) <= wanted)
        if asking.device.type == "cpu" and not asking.any():
            break  # elsewhere this would wait for the device
        asked = asked | asking
        kept = compete(kept | asking)
    return asked, kept


def _count(ids: Tensor, num_experts: int) -> Tensor:
    """How often each of 0 .. E-1 occurs; E counts nothing."""
    ones = torch.ones_like(ids).flatten()
    return ids.new_zeros(num_experts + 1).scatter_add(0, ids.flatten(), ones)[:num_experts]


def _offsets(counts: Tensor, padded_rows: int | None, row_alignment: int) -> Tensor:
    """[E + 1]: the first row of each expert, and the end of the last."""
    num_experts = counts.shape[0]
    if padded_rows is not None:
        return torch.arange(num_experts + 1, device=counts.device) * (padded_rows // num_experts)
    aligned = (counts + row_alignment - 1) // row_alignment * row_alignment
    return torch.cat([counts.new_zeros(1), aligned.cumsum(0)])


def _rows(
    ids: Tensor, kept: Tensor, counts: Tensor, offsets: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Each kept pair's row: the kept pairs of its expert with a lower token come before it."""
    num_tokens, num_experts = ids.shape[0], counts.shape[0]
    tokens = torch.arange(num_tokens, device=ids.device)[:, None].expand_as(ids)
    # Kept pairs are unique in (expert, token), so this orders them by expert, then token.
    key = torch.where(kept, ids * num_tokens + tokens, num_experts * num_tokens).flatten()
    order = key.argsort(stable=True)
    position = torch.empty_like(order).scatter(
        0, order, torch.arange(order.numel(), device=ids.device)
    )
    shift = torch.cat([offsets[:-1] - (counts.cumsum(0) - counts), offsets.new_zeros(1)])
    rows = torch.where(kept, position.view_as(ids) + shift[torch.where(kept, ids, num_experts)], -1)
    target = torch.where(kept, rows, num_rows).flatten()
    row_tokens = rows.new_full((num_rows + 1,), -1).scatter(0, target, tokens.flatten())[:num_rows]
    return rows, row_tokens


def _weights(weights: Tensor, kept: Tensor, kept_weight_sum: float | None) -> Tensor:
    out = torch.where(kept, weights, 0.0)
    if kept_weight_sum is None:
        return out
    # In float64, so that the order of addition does not show in float32.
    total = out.double().sum(1, keepdim=True).clamp(min=1e-20).float()
    return out / total * kept_weight_sum
