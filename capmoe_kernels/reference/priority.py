"""Who comes first: total orders over (token, expert) pairs, by stable sorts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def policy_key(policy: str, ids: Tensor, scores: Tensor, seed: int) -> Tensor:
    """[T, K]: the higher is kept first. A NaN score ranks below every number."""
    tokens = torch.arange(ids.shape[0], device=ids.device)[:, None].expand_as(ids)
    if policy == "keep_first":
        return -tokens
    if policy == "keep_last":
        return tokens
    if policy == "random":
        return pair_hash(seed, tokens, ids)
    return torch.where(scores.isnan(), -torch.inf, scores)


def pair_hash(seed: int, tokens: Tensor, ids: Tensor) -> Tensor:
    """A 32-bit hash of (seed, token, expert), the same on every backend.

    For one expert no two tokens share a value: each step is a bijection of 32-bit integers.
    """
    start = _mix(torch.tensor(seed & _MASK, device=ids.device))
    start = _mix(start ^ (seed >> 32))
    return _mix((_mix((start + tokens) & _MASK) + ids) & _MASK)


def _mix(x: Tensor) -> Tensor:
    """Wellons' ``lowbias32``: an avalanche of the bits of a 32-bit integer held in an int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def rank_in_group(group: Tensor, ids: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """Each pair's place in its group, 0 = first.

    Order: the last of ``keys`` descending, ..., the first of them, then lower token, lower expert.
    """
    num_tokens, columns = ids.shape
    starts = torch.arange(num_tokens, device=ids.device)[:, None] * columns
    order = (ids.argsort(dim=1, stable=True) + starts).flatten()
    for key in keys:
        order = order[key.flatten()[order].argsort(descending=True, stable=True)]
    order = order[group.flatten()[order].argsort(stable=True)]
    grouped = group.flatten()[order].contiguous()
    place = torch.arange(order.numel(), device=ids.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(place).scatter(0, order, place).view_as(ids)


def rank_in_token(kept: Tensor, scores: Tensor, ids: Tensor) -> Tensor:
    """Each pair's place among its token's kept pairs: higher score, then lower expert."""
    order = ids.argsort(dim=1, stable=True)
    for key in (torch.where(scores.isnan(), -torch.inf, scores), kept):
        again = key.gather(1, order).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, again)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.empty_like(order).scatter(1, order, places)
