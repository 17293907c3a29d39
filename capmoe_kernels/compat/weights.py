"""Weights as vLLM and SGLang keep them, as Experts; nothing is copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._checks import FLOATS, require_tensor
from ..experts import Experts
from .activations import ExpertActivation, expert_activation
from .refusals import refuse_attributes

_QUANTIZED_CONFIG = (
    "quant_dtype",
    "weight_quant_dtype",
    "is_quantized",
    "per_act_token_quant",
    "per_out_ch_quant",
    "block_shape",
    "w1_scale",
    "w2_scale",
    "w1_zp",
    "w2_zp",
    "a1_scale",
    "a2_scale",
    "a1_gscale",
    "a2_gscale",
)


def as_experts(
    w1: Tensor,
    w2: Tensor,
    w1_bias: Tensor | None,
    w2_bias: Tensor | None,
    activation: ExpertActivation,
) -> Experts:
    """The caller's weights; nothing is copied.

    Args:
        w1: [E, 2F, H], gate rows first, or [E, F, H] where ``activation`` has no gate.
        w2: [E, H, F], same dtype: float32, bfloat16 or float16.
        w1_bias: [E, 2F] or [E, F], same dtype, or None.
        w2_bias: [E, H], same dtype, or None.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
    """
    require_tensor("w2", w2, [None, None, None], FLOATS, meaning="E, H, F")
    num_experts, hidden, intermediate = w2.shape
    gated = not activation.activation.endswith("_no_mul")
    rows = 2 * intermediate if gated else intermediate
    same, device = (w2.dtype,), w2.device
    meaning = "E, 2F, H" if gated else "E, F, H for an activation without a gate"
    require_tensor("w1", w1, [num_experts, rows, hidden], same, device, meaning)
    if w1_bias is not None:
        require_tensor("w1_bias", w1_bias, [num_experts, rows], same, device)
    if w2_bias is not None:
        require_tensor("w2_bias", w2_bias, [num_experts, hidden], same, device, "E, H")
    return Experts(w1, w2, w1_bias, w2_bias, activation.activation, activation.layout)


def given_experts(
    w1: Tensor,
    w2: Tensor,
    w1_bias: Tensor | None,
    w2_bias: Tensor | None,
    activation: Any,
    quant_config: Any,
) -> Experts:
    """The weights, with what an unquantised config says about them."""
    constants: list[float | None] = [None, None, None]
    if quant_config is not None:
        reason = "the experts are float32, bfloat16 or float16, not quantised"
        refuse_attributes("quant_config", quant_config, _QUANTIZED_CONFIG, reason)
        w1_bias = _one_bias("w1_bias", w1_bias, quant_config)
        w2_bias = _one_bias("w2_bias", w2_bias, quant_config)
        names = ("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit")
        constants = [getattr(quant_config, name, None) for name in names]
    kind = expert_activation(activation, *constants)
    return as_experts(w1, w2, w1_bias, w2_bias, kind)


def _one_bias(name: str, given: Tensor | None, quant_config: Any) -> Tensor | None:
    configured: Tensor | None = getattr(quant_config, name, None)
    if given is not None and configured is not None:
        raise ValueError(f"{name} must be given once: quant_config.{name} is there, too")
    return configured if given is None else given
