"""Scores, top-k, and the candidates Expanded Drop adds (arXiv 2503.05066, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """See the op table in ops.py.

    Experts are ranked by the raw logits where there is no bias, so the choice involves no rounding.
    A logit of -inf or NaN forbids the expert to the token; +inf counts as the largest float.
    """
    num_experts = router_logits.shape[1]
    logits = router_logits.float().clamp(max=torch.finfo(torch.float32).max)
    allowed = logits > -torch.inf
    probs = _scores(logits, allowed, scoring)
    rank_by = logits
    if selection_bias is not None:
        rank_by = probs + selection_bias
        allowed = allowed & (rank_by > -torch.inf)
    if num_groups > 1:
        summands = probs if selection_bias is None else rank_by
        best = _best_groups(rank_by, summands, allowed, num_groups, topk_groups, group_score)
        allowed = allowed & best.repeat_interleave(num_experts // num_groups, dim=1)

    order = _best_first(rank_by, allowed)
    ids = order[:, : top_k + extra]
    if expand == "local":
        ids = torch.cat(
            [ids, _local_extras(rank_by, allowed, ids, local_start, local_stop)], dim=1
        )[:, :num_experts]
    used = allowed.gather(1, ids.clamp(max=num_experts - 1)) & (ids < num_experts)
    chosen = torch.where(used, probs.gather(1, ids.clamp(max=num_experts - 1)), 0.0)

    # In float64, so that the order of addition does not show in float32.
    denominator = chosen[:, :top_k].double().sum(1, keepdim=True).clamp(min=1e-20).float()
    normalised = chosen / denominator
    weights = chosen
    if renormalize != "kept":  # "kept" is normalised by select, which knows what was kept
        weights = (normalised if renormalize == "topk" else chosen) * scaling
    scores = normalised if drop_score == "weight" and renormalize != "none" else chosen
    return torch.where(used, ids, num_experts).int(), weights.contiguous(), scores.contiguous()


def _scores(logits: Tensor, allowed: Tensor, scoring: str) -> Tensor:
    if scoring == "sigmoid":
        return torch.where(allowed, logits.sigmoid(), 0.0)
    largest = torch.where(allowed, logits, -torch.inf).amax(1, keepdim=True)
    powers = torch.where(allowed, (logits - largest).exp(), 0.0)
    return torch.where(allowed, powers / powers.sum(1, keepdim=True), 0.0)


def _best_first(rank_by: Tensor, allowed: Tensor) -> Tensor:
    """Expert ids from best to worst, ties to the lower id, forbidden ones last."""
    return torch.where(allowed, rank_by, -torch.inf).argsort(dim=1, descending=True, stable=True)


def _best_groups(
    rank_by: Tensor,
    summands: Tensor,
    allowed: Tensor,
    num_groups: int,
    topk_groups: int,
    group_score: str,
) -> Tensor:
    """[T, G] bool: the groups a token may use. Ties go to the lower group."""
    shape = (rank_by.shape[0], num_groups, rank_by.shape[1] // num_groups)
    groups = torch.where(allowed, rank_by, -torch.inf).reshape(shape)
    value = groups.amax(2)
    if group_score == "top2_sum":
        best = groups.topk(min(2, groups.shape[2]), dim=2).indices
        pair = torch.where(allowed, summands, 0.0).reshape(shape).gather(2, best)
        value = torch.where(value > -torch.inf, pair.sum(2), -torch.inf)
    order = value.argsort(dim=1, descending=True, stable=True)[:, :topk_groups]
    return torch.zeros_like(value, dtype=torch.bool).scatter(1, order, True)


def _local_extras(rank_by: Tensor, allowed: Tensor, ids: Tensor, start: int, stop: int) -> Tensor:
    """The local experts that are not in the top-k, best first, then ids >= E."""
    num_experts = allowed.shape[1]
    local = torch.zeros_like(allowed)
    local[:, start:stop] = True
    local = (local & allowed).scatter(1, ids, False)
    order = _best_first(rank_by, local)[:, : stop - start]
    return torch.where(local.gather(1, order), order, num_experts)
