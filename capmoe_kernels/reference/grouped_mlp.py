"""The experts: gate/up projection, activation, down projection, on each expert's own rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .pack import unpack

# GPT-OSS's constants (its `swiglu` with alpha 1.702, limit 7).
_OAI_ALPHA = 1.702
_OAI_LIMIT = 7.0


def grouped_mlp(
    x: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    expert_offsets: Tensor,
    tokens_per_expert: Tensor,
    row_tokens: Tensor | None,
    activation: str,
    layout: str,
) -> Tensor:
    """See the op table in ops.py. Rows of no expert are zero. Computes in the dtype of ``x``."""
    if layout == "packed":
        gated = not activation.endswith("_no_mul")
        down_proj = unpack(down_proj, False, down_proj.shape[2])[:, : x.shape[1]]
        gate_up_proj = unpack(gate_up_proj, gated, x.shape[1])
        down_proj = down_proj[..., : gate_up_proj.shape[1] // (2 if gated else 1)]
    rows = x.shape[0] if row_tokens is None else row_tokens.shape[0]
    y = x.new_zeros(rows, x.shape[1])
    starts, counts = expert_offsets.tolist(), tokens_per_expert.tolist()
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        own = slice(starts[expert], starts[expert] + count)
        inputs = x[own] if row_tokens is None else x[row_tokens[own]]
        up = F.linear(
            inputs, gate_up_proj[expert], None if gate_up_bias is None else gate_up_bias[expert]
        )
        y[own] = F.linear(
            activate(up, activation, layout),
            down_proj[expert],
            None if down_bias is None else down_bias[expert],
        )
    return y


def activate(up: Tensor, activation: str, layout: str) -> Tensor:
    """``act(gate) * up`` of a gated layer's [..., 2F], or ``act`` of a plain one's [..., F]."""
    name = activation.removesuffix("_no_mul")
    if name != activation:
        return _ACTIVATIONS[name](up)
    gate, up = (up[..., ::2], up[..., 1::2]) if layout == "interleaved" else up.chunk(2, dim=-1)
    if activation == "swigluoai":
        gate = gate.clamp(max=_OAI_LIMIT)
        up = up.clamp(-_OAI_LIMIT, _OAI_LIMIT)
        return (up + 1) * (gate * torch.sigmoid(_OAI_ALPHA * gate))
    return _ACTIVATIONS[activation](gate) * up


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu2,
}
