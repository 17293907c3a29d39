"""The layer around the routing: dispatch, grouped_mlp, combine, and moe, which does it all."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import FLOATS, readable, require_inference, require_number, require_tensor
from ._layer_checks import check_moe, expert_tensors, is_plain
from ._op_options import moe_rows
from ._plans import make_plan, plan_of
from .arrays import accepts_arrays
from .capacity import Capacity
from .experts import Experts
from .gating import Gating
from .ops import run
from .routing import Routing

_DROPLESS = Capacity()


@accepts_arrays
def dispatch(hidden_states: Tensor, routing: Routing) -> Tensor:
    """Copy every kept token's row into its experts' rows.

    Args:
        hidden_states: [T, H] float32, bfloat16 or float16, any strides.
        routing: of the same T tokens.

    Returns:
        [N, H], rows grouped by expert; padding rows are unspecified.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
        RuntimeError: ``hidden_states`` requires grad.
    """
    _check_routing(routing)
    _check_hidden(hidden_states, routing)
    require_inference(hidden_states=hidden_states)
    out: Tensor = run("dispatch", hidden_states, routing.row_tokens)
    return out


@accepts_arrays
def grouped_mlp(x: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Run every expert on its own rows.

    Args:
        x: [N, H], from :func:`dispatch`, of the experts' dtype.
        experts: the E experts of ``routing``.
        routing: whose offsets say which rows are whose.

    Returns:
        [N, H] of the same dtype, summed in float32; rows of no expert are unspecified.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
        RuntimeError: an input requires grad.
    """
    _check_routing(routing)
    _check_experts(experts, routing)
    rows, hidden = routing.row_tokens.shape[0], experts.hidden_size
    dtype, device = experts.down_proj.dtype, experts.down_proj.device
    require_tensor("x", x, [rows, hidden], [dtype], device, "N, H")
    require_inference(x=x, **expert_tensors(experts))
    return _grouped_mlp(x, experts, routing, None)


@accepts_arrays
def combine(y: Tensor, routing: Routing) -> Tensor:
    """Sum each token's expert outputs by weight, in float32 and in candidate order.

    Args:
        y: [N, H] float32, bfloat16 or float16, any strides.
        routing: the one ``y``'s rows are laid out by.

    Returns:
        [T, H] of ``y``'s dtype. A token that kept no expert gets exactly 0.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
        RuntimeError: ``y`` requires grad.
    """
    _check_routing(routing)
    rows, device = routing.row_tokens.shape[0], routing.rows.device
    require_tensor("y", y, [rows, None], FLOATS, device, "N, H")
    require_inference(y=y, **{"routing.weights": routing.weights})
    out: Tensor = run("combine", y, routing.rows, routing.weights)
    return out


@accepts_arrays
def moe(
    hidden_states: Tensor,
    router_logits: Tensor,
    experts: Experts,
    gating: Gating,
    capacity: Capacity | None = None,
    *,
    token_mask: Tensor | None = None,
    token_priority: Tensor | None = None,
    selection_bias: Tensor | None = None,
) -> Tensor:
    """A whole Mixture-of-Experts layer: route, experts, combine, without the copy of dispatch.

    On CUDA its workspace is one allocation: about ``N * (H + F)`` elements for the N kept rows, and
    4 * E * T bytes of sort keys where capacity drops by score (docs/gpu.md has every piece).

    Args:
        hidden_states: [T, H] of the experts' dtype.
        router_logits: [T, E]; this and the other arguments: see :func:`capmoe_kernels.route`.
        experts: the E experts.

    Returns:
        [T, H] of the same dtype.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
        RuntimeError: an input requires grad.
    """
    capacity = _DROPLESS if capacity is None else capacity
    masks = (token_mask, token_priority, selection_bias)
    unmasked = token_mask is None and token_priority is None and selection_bias is None
    if unmasked and is_plain(hidden_states, router_logits, experts):
        num_experts = router_logits.shape[1]
        plan = plan_of(gating, capacity, num_experts)
        require_number("router_logits", router_logits)
    else:
        check_moe(hidden_states, router_logits, experts, gating, capacity, *masks)
        num_experts = experts.num_experts
        plan = make_plan(gating, capacity, num_experts)
    out: Tensor = run(
        "moe",
        hidden_states,
        router_logits,
        selection_bias,
        *plan.gate_options,
        token_mask,
        None if token_priority is None else token_priority.long(),
        *plan.select_options,
        moe_rows(hidden_states.shape[0], gating.top_k, capacity, num_experts),
        experts.gate_up_proj,
        experts.down_proj,
        experts.gate_up_bias,
        experts.down_bias,
        experts.activation,
        experts.layout,
    )
    return out


def _grouped_mlp(
    x: Tensor, experts: Experts, routing: Routing, row_tokens: Tensor | None
) -> Tensor:
    out: Tensor = run(
        "grouped_mlp",
        x,
        experts.gate_up_proj,
        experts.down_proj,
        experts.gate_up_bias,
        experts.down_bias,
        routing.expert_offsets,
        routing.tokens_per_expert,
        row_tokens,
        experts.activation,
        experts.layout,
    )
    return out


def _check_routing(routing: Routing) -> None:
    """Refuse a routing that :func:`route` and :func:`select` would not make."""
    if not isinstance(routing, Routing):
        raise TypeError(f"routing must be capmoe_kernels.Routing, got {type(routing).__name__}")
    ints = (torch.int32,)
    require_tensor("routing.rows", routing.rows, [None, None], ints, meaning="T, K")
    pairs, device = list(routing.rows.shape), routing.rows.device
    require_tensor("routing.weights", routing.weights, pairs, [torch.float32], device, "T, K")
    require_tensor("routing.row_tokens", routing.row_tokens, [None], ints, device, "N")
    counts = routing.tokens_per_expert
    require_tensor("routing.tokens_per_expert", counts, [None], ints, device, "E")
    ends = [counts.shape[0] + 1]
    require_tensor("routing.expert_offsets", routing.expert_offsets, ends, ints, device, "E + 1")
    if readable(routing.rows):
        _check_routing_values(routing)


def _check_routing_values(routing: Routing) -> None:
    num_tokens, num_rows = routing.rows.shape[0], routing.row_tokens.shape[0]
    for name, end in (("row_tokens", num_tokens), ("rows", num_rows)):
        values = getattr(routing, name)
        if values.numel() and not (values.min() >= -1 and values.max() < end):
            raise ValueError(
                f"routing.{name} must be from -1 to {end - 1},"
                f" got {values.min().item()} to {values.max().item()}"
            )
    starts, ends = routing.expert_offsets[:-1].long(), routing.expert_offsets[1:].long()
    own = starts + routing.tokens_per_expert
    fits = (starts >= 0) & (own >= starts) & (own <= ends) & (own <= num_rows)
    if not fits.all():
        raise ValueError(
            "routing.expert_offsets and routing.tokens_per_expert must give each expert rows of its"
            f" own below {num_rows}, expert {int(fits.int().argmin())} has others"
        )


def _check_hidden(hidden_states: Tensor, routing: Routing) -> None:
    num_tokens, device = routing.rows.shape[0], routing.rows.device
    require_tensor("hidden_states", hidden_states, [num_tokens, None], FLOATS, device, "T, H")


def _check_experts(experts: Experts, routing: Routing) -> None:
    if not isinstance(experts, Experts):
        raise TypeError(f"experts must be capmoe_kernels.Experts, got {type(experts).__name__}")
    if experts.num_experts != routing.tokens_per_expert.shape[0]:
        raise ValueError(
            f"experts must hold {routing.tokens_per_expert.shape[0]} experts, as many as routing,"
            f" got {experts.num_experts}"
        )
