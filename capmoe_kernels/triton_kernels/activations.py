"""What happens to a tile's sums before they are rounded. Formulas: reference/grouped_mlp.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(gate, up, activation: tl.constexpr):
    """``act(gate) * up``, or ``act(gate)`` of a plain layer, where up is None."""
    if activation == "swigluoai":
        # Comparisons, not minimum and maximum: NaN stays NaN.
        gate = tl.where(gate > 7.0, 7.0, gate)
        up = tl.where(up > 7.0, 7.0, up)
        up = tl.where(up < -7.0, -7.0, up) + 1.0
        value = times_sigmoid(gate, 1.702 * gate)
    elif activation == "silu":
        value = times_sigmoid(gate, gate)
    elif activation == "gelu":
        value = 0.5 * gate * (1.0 + tl.erf(0.7071067811865476 * gate))
    elif activation == "gelu_tanh":
        # (1 + tanh(z)) / 2 is the sigmoid of 2z, and 2 sqrt(2 / pi) the constant.
        cubic = gate + 0.044715 * gate * gate * gate
        value = times_sigmoid(gate, 1.5957691216057308 * cubic)
    elif activation == "relu":
        value = tl.where(gate < 0.0, 0.0, gate)
    elif activation == "relu2":
        value = tl.where(gate < 0.0, 0.0, gate * gate)
    else:
        tl.static_assert(activation == "none")
        value = gate
    return value if up is None else value * up


@triton.jit
def times_sigmoid(x, z):
    return x / (1.0 + tl.exp(-z))
