"""What moe refuses, before any work; a plain call is found right without many looks."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import FLOATS, require_inference, require_tensor
from ._routing_checks import check_route
from .capacity import Capacity
from .experts import Experts
from .gating import Gating
from .packed_experts import PackedExperts


def is_plain(hidden_states: Tensor, router_logits: Tensor, experts: Experts) -> bool:
    """Whether :func:`check_moe` would surely pass these: what most calls are, found out fast."""
    if torch.compiler.is_compiling():
        return False
    if (type(hidden_states), type(router_logits)) != (Tensor, Tensor):
        return False
    if type(experts) not in (Experts, PackedExperts):
        return False
    down, x, logits = experts.down_proj, hidden_states.shape, router_logits.shape
    return (
        len(x) == 2
        and x[1] == experts.hidden_size
        and logits == (x[0], experts.num_experts)
        and hidden_states.dtype == down.dtype
        and router_logits.dtype in FLOATS
        and hidden_states.device == router_logits.device == down.device
        and not (torch.is_grad_enabled() and _needs_grad(hidden_states, router_logits, experts))
    )


def _needs_grad(hidden_states: Tensor, router_logits: Tensor, experts: Experts) -> bool:
    biases = (experts.gate_up_bias, experts.down_bias)
    return (
        hidden_states.requires_grad
        or router_logits.requires_grad
        or experts.gate_up_proj.requires_grad
        or experts.down_proj.requires_grad
        or any(bias is not None and bias.requires_grad for bias in biases)
    )


def check_moe(
    hidden_states: Tensor,
    router_logits: Tensor,
    experts: Experts,
    gating: Gating,
    capacity: Capacity,
    token_mask: Tensor | None,
    token_priority: Tensor | None,
    selection_bias: Tensor | None,
) -> None:
    check_tensors(hidden_states, router_logits, experts, "experts")
    check_route(router_logits, gating, capacity, token_mask, token_priority, selection_bias)


def check_tensors(
    hidden_states: Tensor, router_logits: Tensor, experts: Experts, name: str
) -> None:
    """Refuse what does not fit together; ``name`` is the caller's for ``experts``."""
    if not isinstance(experts, Experts):
        raise TypeError(f"{name} must be capmoe_kernels.Experts, got {type(experts).__name__}")
    has_tokens = isinstance(hidden_states, Tensor) and hidden_states.dim() > 0
    num_tokens = hidden_states.shape[0] if has_tokens else None
    dtype, device = experts.down_proj.dtype, experts.down_proj.device
    hidden = [num_tokens, experts.hidden_size]
    require_tensor("hidden_states", hidden_states, hidden, [dtype], device, "T, H")
    logits = [num_tokens, experts.num_experts]
    require_tensor("router_logits", router_logits, logits, FLOATS, device, "T, E")
    require_inference(hidden_states=hidden_states, **expert_tensors(experts))


def expert_tensors(experts: Experts) -> dict[str, Tensor | None]:
    return {
        "Experts.gate_up_proj": experts.gate_up_proj,
        "Experts.down_proj": experts.down_proj,
        "Experts.gate_up_bias": experts.gate_up_bias,
        "Experts.down_bias": experts.down_bias,
    }
