"""What route and select refuse, before any work."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ._checks import (
    FLOATS,
    INTS,
    require_choice,
    require_inference,
    require_int,
    require_number,
    require_tensor,
)
from .capacity import Capacity
from .gating import Gating

RowLayout = Literal["packed", "padded"]


def check_route(
    router_logits: Tensor,
    gating: Gating,
    capacity: Capacity,
    token_mask: Tensor | None,
    token_priority: Tensor | None,
    selection_bias: Tensor | None,
) -> None:
    require_gating(gating)
    require_capacity(capacity)
    require_tensor("router_logits", router_logits, [None, None], FLOATS, meaning="T, E")
    num_experts = router_logits.shape[1]
    gating.check_experts(num_experts)
    capacity.check_experts(num_experts)
    check_tokens(router_logits, token_mask, token_priority)
    if selection_bias is not None:
        device = router_logits.device
        require_tensor(
            "selection_bias", selection_bias, [num_experts], [torch.float32], device, "E"
        )
        require_number("selection_bias", selection_bias)
    require_inference(router_logits=router_logits, selection_bias=selection_bias)
    require_number("router_logits", router_logits, token_mask)


def require_gating(gating: Gating) -> None:
    if not isinstance(gating, Gating):
        raise TypeError(f"gating must be capmoe_kernels.Gating, got {type(gating).__name__}")


def require_capacity(capacity: Capacity) -> None:
    if not isinstance(capacity, Capacity):
        raise TypeError(
            f"capacity must be capmoe_kernels.Capacity or None, got {type(capacity).__name__}"
        )


def require_row_numbers(num_rows: int) -> None:
    if num_rows >= 2**31:
        raise ValueError(
            f"the routing needs {num_rows} rows, more than 32-bit row numbers can name: route fewer"
            " tokens at a time, or lower row_alignment or the capacity"
        )


def check_tokens(pairs: Tensor, token_mask: Tensor | None, token_priority: Tensor | None) -> None:
    num_tokens, device = pairs.shape[0], pairs.device
    if token_mask is not None:
        require_tensor("token_mask", token_mask, [num_tokens], [torch.bool], device, "T")
    if token_priority is not None:
        require_tensor("token_priority", token_priority, [num_tokens], INTS, device, "T")


def check_rows(layout: str, row_alignment: int, capacity: Capacity) -> None:
    require_choice("layout", layout, get_args(RowLayout))
    require_int("row_alignment", row_alignment, minimum=1, maximum=2**20)
    if layout == "padded" and capacity.scope == "device":
        raise ValueError(
            "layout must be 'packed' for Capacity.scope='device': an expert may hold more than C"
        )
