"""vLLM's fused_experts and fused_moe, with a capacity.

The names, argument order and layouts are those of vLLM 0.32
(``vllm.model_executor.layers.fused_moe``); nothing of vLLM is imported.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._checks import FLOATS, require_tensor
from ..capacity import Capacity
from ..experts import Experts
from ..layer import moe
from ..routing import route
from .experts import local_part, require_expert_map, require_hidden, route_topk, run_experts
from .gating import Grouping, make_gating
from .refusals import refuse, refuse_quantization
from .weights import given_experts


def fused_experts(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: Any = "silu",
    apply_router_weight_on_input: bool = False,
    global_num_experts: int = -1,
    expert_map: Tensor | None = None,
    quant_config: Any = None,
    *,
    inplace: bool = False,
    w1_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    capacity: Capacity | None = None,
    scores: Tensor | None = None,
    **unsupported: Any,
) -> Tensor:
    """vLLM's ``fused_experts``, in which no expert holds more tokens than ``capacity`` allows.

    Args:
        hidden_states: [T, H] of the weights' dtype, any strides.
        w1: [E, 2F, H], gate rows first ([E, F, H] for ``"..._no_mul"``); float32, bfloat16 or
            float16.
        w2: [E, H, F], same dtype.
        topk_weights: [T, K] float32.
        topk_ids: [T, K] int32 or int64, of all experts. An id that is no expert's, such as -1,
            means "not routed"; of an expert listed twice for a token, the first counts.
        activation: vLLM's name, or its ``MoEActivation``: see
            ``capmoe_kernels.compat.activations``.
        apply_router_weight_on_input: multiply an expert's input by the weight, not its output.
        global_num_experts: E of the whole layer; -1: as ``expert_map`` says, or E of the weights.
        expert_map: [E_global] int32 or int64: an expert's place in ``w1``, or -1 where it is on
            another rank. The bound is that of all experts, so all ranks decide alike.
        quant_config: an unquantised ``FusedMoEQuantConfig``, whose biases and SwiGLU constants are
            used, or None.
        inplace: write the result into ``hidden_states`` and return that.
        w1_bias: [E, 2F], same dtype.
        w2_bias: [E, H], same dtype.
        capacity: bounds the experts' load, see :func:`capmoe_kernels.select`. None: dropless.
        scores: [T, K] float32, what ``capacity`` ranks by; ``topk_weights`` where None.
        unsupported: any other of vLLM's arguments, such as ``w1_scale``, which must ask for
            nothing.

    Returns:
        [T, H], weighted and summed in float32, in ``topk_ids``'s order of columns. A token that is
        routed nowhere gets exactly 0.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
        RuntimeError: an input requires grad.
    """
    refuse_quantization("fused_experts", unsupported)
    experts = given_experts(w1, w2, w1_bias, w2_bias, activation, quant_config)
    num_tokens = topk_ids.shape[0] if isinstance(topk_ids, Tensor) else None
    require_hidden(hidden_states, num_tokens, experts)
    _check_global(global_num_experts, expert_map, experts)
    routing = route_topk(
        topk_ids,
        topk_weights,
        experts.num_experts,
        capacity,
        scores=scores,
        expert_map=expert_map,
    )
    out = run_experts(
        hidden_states, experts, routing, weights_on_input=apply_router_weight_on_input
    )
    return hidden_states.copy_(out) if inplace else out


def fused_moe(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    gating_output: Tensor,
    topk: int,
    renormalize: bool,
    inplace: bool = False,
    activation: Any = "silu",
    use_grouped_topk: bool = False,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    custom_routing_function: Any = None,
    *,
    scoring_func: str = "softmax",
    e_score_correction_bias: Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    global_num_experts: int = -1,
    expert_map: Tensor | None = None,
    quant_config: Any = None,
    w1_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    capacity: Capacity | None = None,
    **unsupported: Any,
) -> Tensor:
    """:func:`fused_experts` that chooses the experts itself, so that Expanded Drop is possible.

    vLLM's ``fused_moe`` (up to 0.10) with the arguments of its routers since. Ties go to the lower
    expert, where vLLM's ``topk`` leaves them open.

    Args:
        gating_output: [T, E_global] float32, bfloat16 or float16 logits.
        topk: experts a token asks for.
        renormalize: divide the weights by the sum of the token's top-k.
        use_grouped_topk: a token uses only experts of its ``topk_group`` best of
            ``num_expert_group`` groups; a group counts as its best expert, or, with a bias, as the
            sum of its two best.
        custom_routing_function: refused: call it, and :func:`fused_experts`.
        scoring_func: ``"softmax"`` or ``"sigmoid"``.
        e_score_correction_bias: [E_global] float32, ranks experts and never weighs.
        routed_scaling_factor: multiplies the weights.
        capacity: see :func:`capmoe_kernels.route`; ``local_experts`` counts global experts.

    All others: see :func:`fused_experts`.

    Raises:
        TypeError, ValueError, RuntimeError: see :func:`fused_experts`.
    """
    refuse_quantization("fused_moe", unsupported)
    refuse(
        "custom_routing_function",
        custom_routing_function,
        "call it yourself and give fused_experts what it returns",
    )
    grouping = Grouping(use_grouped_topk, num_expert_group, topk_group)
    has_bias = e_score_correction_bias is not None
    gating = make_gating(topk, renormalize, grouping, scoring_func, has_bias, routed_scaling_factor)
    experts = given_experts(w1, w2, w1_bias, w2_bias, activation, quant_config)
    num_tokens = gating_output.shape[0] if isinstance(gating_output, Tensor) else None
    require_hidden(hidden_states, num_tokens, experts)
    num_experts = _check_global(global_num_experts, expert_map, experts)
    shape = [num_tokens, num_experts]
    require_tensor("gating_output", gating_output, shape, FLOATS, w1.device, "T, E")
    bias = e_score_correction_bias
    if expert_map is None and not apply_router_weight_on_input:
        out = moe(hidden_states, gating_output, experts, gating, capacity, selection_bias=bias)
    else:
        routing = route(gating_output, gating, capacity, selection_bias=bias)
        if expert_map is not None:
            routing = local_part(routing, expert_map, experts.num_experts)
        out = run_experts(
            hidden_states, experts, routing, weights_on_input=apply_router_weight_on_input
        )
    return hidden_states.copy_(out) if inplace else out


def _check_global(global_num_experts: int, expert_map: Tensor | None, experts: Experts) -> int:
    """E of the whole layer; raise where the arguments disagree about it."""
    num_global = experts.num_experts
    if expert_map is not None:
        num_global = expert_map.shape[0] if isinstance(expert_map, Tensor) else num_global
        require_expert_map(expert_map, num_global, experts.num_experts, experts.down_proj.device)
    if global_num_experts not in (-1, num_global):
        wanted = "expert_map" if expert_map is not None else "w1, without an expert_map,"
        raise ValueError(
            f"global_num_experts must be -1 or {num_global}, as many as {wanted} has,"
            f" got {global_num_experts}"
        )
    return num_global
