"""What every adapter ends in: a caller's own choice of experts, run on these kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import INTS, readable, require_inference, require_tensor
from .._layer_checks import expert_tensors
from ..capacity import Capacity
from ..experts import Experts
from ..layer import _grouped_mlp
from ..ops import run
from ..routing import Routing, select


def require_expert_map(
    expert_map: Any, num_global: int, num_local: int, device: torch.device
) -> None:
    """Raise unless it sends ``num_global`` experts to -1 or each to a local one of its own."""
    require_tensor("expert_map", expert_map, [num_global], INTS, device, "E_global")
    if not readable(expert_map):
        return
    here = expert_map[expert_map != -1]
    if here.numel() and not (here.min() >= 0 and here.max() < num_local):
        raise ValueError(
            f"expert_map must hold -1 or a local expert, 0 to {num_local - 1},"
            f" got {expert_map.min().item()} to {expert_map.max().item()}"
        )
    if here.unique().numel() != here.numel():
        raise ValueError("expert_map must send no two experts to the same local one")


def route_topk(
    topk_ids: Tensor,
    topk_weights: Tensor,
    num_local: int,
    capacity: Capacity | None,
    *,
    scores: Tensor | None = None,
    expert_map: Tensor | None = None,
) -> Routing:
    """:func:`capmoe_kernels.select` over all experts, then the part of it that is local.

    The bound is that of the whole layer, so every rank that sees these tokens decides alike.

    Args:
        topk_ids, topk_weights, scores: see :func:`capmoe_kernels.select`.
        num_local: E of the weights here.
        expert_map: [E_global] int32 or int64: an expert's place here, or -1. None: all are here.
    """
    if expert_map is None:
        return select(topk_ids, topk_weights, num_local, capacity, scores=scores)
    decided = select(topk_ids, topk_weights, expert_map.shape[0], capacity, scores=scores)
    return local_part(decided, expert_map, num_local)


def local_part(routing: Routing, expert_map: Tensor, num_local: int) -> Routing:
    """The kept pairs of the experts that ``expert_map`` has here, under their local numbers."""
    ids = routing.expert_ids.clamp(max=expert_map.shape[0] - 1)
    here = torch.where(routing.rows >= 0, expert_map[ids.long()], -1)
    return select(here, routing.weights, num_local)


def require_hidden(hidden_states: Any, num_tokens: int | None, experts: Experts) -> None:
    """Raise unless these are [T, H] of the experts' dtype, and no gradient is asked for."""
    dtype, device = experts.down_proj.dtype, experts.down_proj.device
    shape = [num_tokens, experts.hidden_size]
    require_tensor("hidden_states", hidden_states, shape, [dtype], device, "T, H")
    require_inference(hidden_states=hidden_states, **expert_tensors(experts))


def run_experts(
    hidden_states: Tensor, experts: Experts, routing: Routing, *, weights_on_input: bool = False
) -> Tensor:
    """[T, H]: the experts on their rows, gathered in passing, and the weighted sum per token.

    Args:
        hidden_states: [T, H] of the experts' dtype, any strides; checked by the caller.
        routing: of these tokens and experts.
        weights_on_input: a row is multiplied by its weight, and rounded, before the experts
            instead of after.
    """
    if not weights_on_input:
        y = _grouped_mlp(hidden_states, experts, routing, routing.row_tokens)
        return _combine(y, routing.rows, routing.weights)
    x: Tensor = run("dispatch", hidden_states, routing.row_tokens)
    x = (x * _row_weights(routing)[:, None]).to(hidden_states.dtype)
    y = _grouped_mlp(x, experts, routing, None)
    return _combine(y, routing.rows, (routing.rows >= 0).float())


def _combine(y: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    out: Tensor = run("combine", y, rows, weights)
    return out


def _row_weights(routing: Routing) -> Tensor:
    """[N] float32: the weight of the pair in each row, 0 in padding."""
    num_rows = routing.row_tokens.shape[0]
    rows = torch.where(routing.rows >= 0, routing.rows, num_rows).flatten().long()
    weights = routing.weights.new_zeros(num_rows + 1)
    return weights.index_put((rows,), routing.weights.flatten())[:num_rows]
