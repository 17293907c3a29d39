"""SGLang's fused_experts, with a capacity.

The names and order are those of ``sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe``; its
two configuration objects are read by attribute, and nothing of SGLang is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .._checks import require_finite, require_int
from ..bounds import share
from ..capacity import Capacity
from .activations import ExpertActivation, expert_activation
from .experts import require_hidden, route_topk, run_experts
from .refusals import refuse, refuse_attributes, refuse_quantization
from .weights import as_experts

# What a MoeRunnerConfig says that changes nothing here, and what is read from it.
_NEUTRAL = {
    "num_experts",
    "num_local_experts",
    "num_fused_shared_experts",
    "hidden_size",
    "intermediate_size_per_partition",
    "layer_id",
    "top_k",
    "params_dtype",
    "routing_method_type",
    "activation",
    "is_gated",
    "apply_router_weight_on_input",
    "inplace",
    "routed_scaling_factor",
    "gemm1_alpha",
    "gemm1_clamp_limit",
    "gate_up_interleaved",
}


def fused_experts(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_output: Sequence[Any],
    moe_runner_config: Any,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    capacity: Capacity | None = None,
    scores: Tensor | None = None,
    **unsupported: Any,
) -> Tensor:
    """SGLang's ``fused_experts``, in which no expert holds more tokens than ``capacity`` allows.

    Args:
        hidden_states: [T, H] of the weights' dtype, any strides. Overwritten, and returned, where
            the configuration says ``inplace``, as SGLang's does by default.
        w1: [E, 2F, H], gate rows first ([E, F, H] where not ``is_gated``; gate and up in turns for
            GPT-OSS's ``gemm1_alpha``, unless ``gate_up_interleaved`` is False); float32, bfloat16
            or float16.
        w2: [E, H, F], same dtype.
        topk_output: starts with topk_weights [T, K] float32 and topk_ids [T, K] int32 or int64,
            local, -1 where the expert is elsewhere: a ``StandardTopKOutput``.
        moe_runner_config: a ``MoeRunnerConfig``, or anything with its attributes. Where it says
            that ``num_experts`` is more than ``num_local_experts``, the capacity is the share of
            all ``num_experts``. These and ``top_k`` must fit the tensors where they are not None.
        b1, b2: [E, 2F] and [E, H], same dtype.
        capacity, scores: see :func:`capmoe_kernels.compat.fused_experts`.
        unsupported: any other of SGLang's arguments, such as ``w1_scale``, which must ask for
            nothing.

    Returns:
        [T, H]: see :func:`capmoe_kernels.compat.fused_experts`.

    Raises:
        TypeError, ValueError: naming the argument and what it expects; also for an attribute of
            the configuration that is not known and asks for something.
        RuntimeError: an input requires grad.
    """
    refuse_quantization("fused_experts", unsupported)
    config = moe_runner_config
    unknown = sorted(name for name in _settings(config) if name not in _NEUTRAL)
    refuse_attributes("moe_runner_config", config, unknown, "capmoe_kernels does not have it")
    if len(topk_output) < 2:
        raise ValueError(
            f"topk_output must start with topk_weights and topk_ids, got {len(topk_output)} items"
        )
    topk_weights, topk_ids = topk_output[0], topk_output[1]
    experts = as_experts(w1, w2, b1, b2, _activation(config))
    _check_sizes(config, topk_ids, experts.num_experts)
    num_tokens = topk_ids.shape[0] if isinstance(topk_ids, Tensor) else None
    require_hidden(hidden_states, num_tokens, experts)
    scaling = _get(config, "routed_scaling_factor", None)
    bound = _bound(config, capacity, topk_ids, experts.num_experts)
    scores = topk_weights if scores is None else scores
    on_input = bool(_get(config, "apply_router_weight_on_input", False))
    if scaling is not None:
        require_finite("moe_runner_config.routed_scaling_factor", scaling, above=0.0, most=3e38)
    if scaling is not None and not on_input:
        topk_weights = topk_weights * scaling  # in float32; the output is rounded once
    routing = route_topk(topk_ids, topk_weights, experts.num_experts, bound, scores=scores)
    out = run_experts(hidden_states, experts, routing, weights_on_input=on_input)
    if scaling is not None and on_input:
        out = out * scaling
    return hidden_states.copy_(out) if _get(config, "inplace", False) else out


def _settings(config: Any) -> list[str]:
    """The names of a configuration's attributes, of an instance, a dataclass or slots."""
    slots = [slot for kind in type(config).__mro__ for slot in _slots(kind)]
    own = getattr(config, "__dict__", None)
    if isinstance(config, Mapping) or (own is None and not slots):
        raise TypeError(
            "moe_runner_config must be a MoeRunnerConfig or have its attributes,"
            f" got {type(config).__name__}"
        )
    names = dict.fromkeys([*getattr(config, "__dataclass_fields__", ()), *(own or ()), *slots])
    return [name for name in names if not name.startswith("_")]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _check_sizes(config: Any, topk_ids: Any, num_local: int) -> None:
    """Raise ValueError where the configuration is of another layer than the tensors."""
    fused = _size(config, "num_fused_shared_experts") or 0
    experts, local = _size(config, "num_experts"), _size(config, "num_local_experts")
    top_k = _size(config, "top_k")
    if local is not None and local != num_local:
        raise ValueError(
            f"moe_runner_config.num_local_experts must be w1's {num_local}, got {local}"
        )
    if experts is not None and experts < num_local - fused:
        raise ValueError(
            f"moe_runner_config.num_experts must be at least w1's {num_local}, got {experts}"
        )
    columns = topk_ids.shape[-1] if isinstance(topk_ids, Tensor) and topk_ids.dim() else None
    # Whether a fused shared expert is counted in is the caller's.
    if None not in (top_k, columns) and columns not in (top_k, (top_k or 0) + fused):
        raise ValueError(
            f"moe_runner_config.top_k must be topk_ids' {columns} columns, got {top_k}"
        )


def _size(config: Any, name: str) -> int | None:
    value: int | None = _get(config, name, None)
    if value is not None:
        require_int(f"moe_runner_config.{name}", value, minimum=0)
    return value


def _get(config: Any, name: str, default: Any) -> Any:
    return getattr(config, name, default)


def _activation(config: Any) -> ExpertActivation:
    """SGLang calls GPT-OSS's activation "silu" with an alpha and a limit."""
    name, gated = _get(config, "activation", "silu"), _get(config, "is_gated", True)
    alpha, limit = _get(config, "gemm1_alpha", None), _get(config, "gemm1_clamp_limit", None)
    if name == "silu" and gated and alpha is not None:
        in_turns = _get(config, "gate_up_interleaved", True)
        kind = "swigluoai" if in_turns else "swigluoai_uninterleave"
        return expert_activation(kind, alpha, 1.0, limit)
    if gated:
        return expert_activation(name, alpha, None, limit)
    return expert_activation(f"{name}_no_mul", alpha, None, limit)


def _bound(
    config: Any, capacity: Capacity | None, topk_ids: Any, num_local: int
) -> Capacity | None:
    """``capacity`` with C of the whole layer, where the ids are of a part of it."""
    if capacity is None:
        return None
    refuse(
        "moe_runner_config.num_fused_shared_experts",
        _get(config, "num_fused_shared_experts", None) or None,
        "a capacity would drop tokens of a shared expert, which every token needs",
    )
    num_experts = _get(config, "num_experts", None) or num_local
    if num_experts == num_local or capacity.ratio is None or not isinstance(topk_ids, Tensor):
        return capacity
    num_tokens, top_k = topk_ids.shape
    limit = share(num_tokens, num_experts, top_k, capacity.ratio, capacity.rounding)
    return replace(capacity, factor=None, limit=limit)
