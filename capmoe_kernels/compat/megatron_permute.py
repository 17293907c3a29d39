"""Megatron-Core's permute and unpermute: tokens to rows grouped by expert, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import FLOATS, INTS, readable, require_inference, require_int, require_tensor
from ..ops import run


def permute(
    tokens: Tensor,
    routing_map: Tensor,
    probs: Tensor | None = None,
    num_out_tokens: int | Tensor | None = None,
    fused: bool = False,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """A row for every pair of ``routing_map``: expert by expert, in token order.

    Args:
        tokens: [T, H] float32, bfloat16 or float16, any strides.
        routing_map: [T, E] bool.
        probs: [T, E], any floating dtype, or None.
        num_out_tokens: pairs in the map, or E * C for ``drop_and_pad``. None, or a tensor, is read,
            which waits for a device.
        fused: either way it is one kernel, and ``sorted_indices`` are those of the unfused form.
        drop_and_pad: every expert gets C rows, its own tokens first and then, in token order,
            others (a map from ``pad_to_capacity`` has C tokens in every column already).

    Returns:
        (rows [N, H], the rows' probs [N] or None, sorted_indices [N] int64: the rows' tokens).

    Raises:
        TypeError, ValueError: naming the argument and what it expects; the map is counted on a CPU
            only, elsewhere rows beyond its pairs are unspecified.
        RuntimeError: an input requires grad.
    """
    require_tensor("routing_map", routing_map, [None, None], [torch.bool], meaning="T, E")
    num_tokens, num_experts = routing_map.shape
    device = routing_map.device
    require_tensor("tokens", tokens, [num_tokens, None], FLOATS, device, "T, H")
    if probs is not None:
        any_float = (*FLOATS, torch.float64)
        require_tensor("probs", probs, [num_tokens, num_experts], any_float, device, "T, E")
    require_inference(tokens=tokens, probs=probs)
    if drop_and_pad and num_out_tokens is not None:
        pairs = _padded_pairs(routing_map, _count(num_out_tokens))
    else:
        pairs = _pairs(routing_map, num_out_tokens)
    row_tokens = pairs % max(num_tokens, 1)
    rows: Tensor = run("dispatch", tokens, row_tokens.int())
    row_probs = None if probs is None else probs.t().reshape(-1)[pairs]
    return rows, row_probs, row_tokens


def unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    fused: bool = False,
    drop_and_pad: bool = False,
) -> Tensor:
    """Every token's rows, weighted by ``probs``, summed: what :func:`permute` took apart.

    Args:
        permuted_tokens: [N, H] float32, bfloat16 or float16, any strides.
        sorted_indices: [N] int32 or int64, the rows' tokens, from :func:`permute`.
        restore_shape: (T, H).
        probs: [T, E] float32, bfloat16 or float16, or None for weights of 1; needs ``routing_map``.
        routing_map: [T, E] bool, the one that :func:`permute` had. None: which rows are a token's
            is read from ``sorted_indices``, which waits for a device.
        fused: either way it is one kernel.
        drop_and_pad: as in :func:`permute`.

    Returns:
        [T, H] of the rows' dtype, summed in float32, experts in ascending order (Megatron sums in
        the dtype of rows times probs, on CUDA in no fixed order). A token without a row gets 0.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
        RuntimeError: an input requires grad.
    """
    require_tensor("permuted_tokens", permuted_tokens, [None, None], FLOATS, meaning="N, H")
    num_rows, hidden = permuted_tokens.shape
    device = permuted_tokens.device
    require_tensor("sorted_indices", sorted_indices, [num_rows], INTS, device, "N")
    if len(restore_shape) != 2 or restore_shape[1] != hidden:
        raise ValueError(f"restore_shape must be (T, {hidden}), got {tuple(restore_shape)}")
    num_tokens = restore_shape[0]
    _check_indices(sorted_indices, num_tokens)
    if routing_map is not None:
        require_tensor("routing_map", routing_map, [num_tokens, None], [torch.bool], device, "T, E")
    weights = _weights(probs, routing_map)
    require_inference(permuted_tokens=permuted_tokens, probs=probs)
    if routing_map is None:
        rows = _rows_of_indices(sorted_indices, num_tokens)
    elif drop_and_pad:
        rows = _rows_of_padded(sorted_indices, num_tokens, routing_map.shape[1])
    else:
        rows = _rows_of_map(routing_map, num_rows)
    if weights is None:
        weights = torch.ones_like(rows, dtype=torch.float32)
    out: Tensor = run("combine", permuted_tokens, rows, weights)
    return out


def _count(num_out_tokens: Any) -> int:
    count = int(num_out_tokens) if isinstance(num_out_tokens, Tensor) else num_out_tokens
    require_int("num_out_tokens", count, minimum=0)
    assert isinstance(count, int)
    return count


def _pairs(routing_map: Tensor, num_out_tokens: int | Tensor | None) -> Tensor:
    """[N] int64: the pairs of the map as e * T + t, ascending."""
    by_expert = routing_map.t().reshape(-1)
    if num_out_tokens is None:
        return by_expert.nonzero()[:, 0]
    count = _count(num_out_tokens)
    if readable(by_expert) and count != by_expert.sum():
        raise ValueError(
            f"num_out_tokens must be {int(by_expert.sum())}, the pairs in routing_map, got {count}"
        )
    # The place of each pair, so that nothing waits; all others write to one place too many.
    place = by_expert.cumsum(0) - 1
    place = torch.where(by_expert & (place < count), place, count)
    pairs = place.new_zeros(count + 1)
    return pairs.scatter(0, place, torch.arange(len(place), device=place.device))[:count]


def _padded_pairs(routing_map: Tensor, count: int) -> Tensor:
    """[E * C] int64: for each expert its first C pairs as e * T + t, filled up in token order."""
    num_tokens, num_experts = routing_map.shape
    if num_experts == 0 or count % num_experts or count // num_experts > num_tokens:
        raise ValueError(
            f"num_out_tokens must be E * C with C at most T for drop_and_pad, got {count}"
            f" for {num_experts} experts and {num_tokens} tokens"
        )
    own_first = routing_map.t().byte().argsort(dim=1, descending=True, stable=True)
    first = torch.arange(num_experts, device=routing_map.device)[:, None] * num_tokens
    return (own_first[:, : count // num_experts] + first).reshape(-1)


def _weights(probs: Tensor | None, routing_map: Tensor | None) -> Tensor | None:
    if probs is None:
        return None
    if routing_map is None:
        raise ValueError("routing_map must be given with probs, got None")
    shape = list(routing_map.shape)
    require_tensor("probs", probs, shape, FLOATS, routing_map.device, "T, E")
    return probs.float()


def _check_indices(sorted_indices: Tensor, num_tokens: int) -> None:
    if not readable(sorted_indices) or sorted_indices.numel() == 0:
        return
    low, high = int(sorted_indices.min()), int(sorted_indices.max())
    if low < 0 or high >= num_tokens:
        raise ValueError(f"sorted_indices must be from 0 to {num_tokens - 1}, got {low} to {high}")


def _rows_of_map(routing_map: Tensor, num_rows: int) -> Tensor:
    """[T, E] int32: the row of each pair, -1 where there is none."""
    by_expert = routing_map.t().reshape(-1)
    if readable(by_expert) and int(by_expert.sum()) != num_rows:
        raise ValueError(
            f"permuted_tokens must have {int(by_expert.sum())} rows, the pairs in routing_map,"
            f" got {num_rows}"
        )
    place = by_expert.cumsum(0) - 1
    place = torch.where(by_expert & (place < num_rows), place, -1)
    return place.view(routing_map.shape[1], routing_map.shape[0]).t().int().contiguous()


def _rows_of_padded(sorted_indices: Tensor, num_tokens: int, num_experts: int) -> Tensor:
    """[T, E] int32: row e * C + c belongs to expert e."""
    num_rows = sorted_indices.shape[0]
    if num_experts == 0 or num_rows % num_experts:
        raise ValueError(
            f"permuted_tokens must have E * C rows for drop_and_pad, got {num_rows}"
            f" for {num_experts} experts"
        )
    numbers = torch.arange(num_rows, dtype=torch.int32, device=sorted_indices.device)
    rows = numbers.new_full((num_experts, num_tokens), -1)
    by_expert = sorted_indices.reshape(num_experts, -1).long()
    return rows.scatter(1, by_expert, numbers.view(num_experts, -1)).t().contiguous()


def _rows_of_indices(sorted_indices: Tensor, num_tokens: int) -> Tensor:
    """[T, K] int32: each token's rows, ascending; K is the most that a token has."""
    indices = sorted_indices.long()
    counts = torch.bincount(indices, minlength=num_tokens)
    columns = int(counts.max()) if counts.numel() else 0
    by_token = indices.argsort(stable=True)
    token = indices[by_token]
    column = torch.arange(len(indices), device=indices.device) - (counts.cumsum(0) - counts)[token]
    rows = by_token.new_full((num_tokens, columns), -1)
    return rows.index_put((token, column), by_token).int()
