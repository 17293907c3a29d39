"""The truth about experts: float64, one token and one expert at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def activate(name, gate, up):
    """float64 tensors; ``gate`` is None for a plain MLP."""
    half = torch.tensor(0.5, dtype=torch.float64)

    def silu(x):
        return x / (1 + torch.exp(-x))

    def gelu(x):
        return half * x * (1 + torch.erf(x / math.sqrt(2)))

    def gelu_tanh(x):
        return half * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    if name == "swigluoai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate / (1 + torch.exp(-1.702 * gate))
    plain = {
        "silu": silu,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "relu": lambda x: x.clamp(min=0),
        "relu2": lambda x: x.clamp(min=0) ** 2,
    }
    if name.endswith("_no_mul"):
        return plain[name.removesuffix("_no_mul")](up)
    return plain[name](gate) * up


def split_gate(projected, activation, layout):
    if activation.endswith("_no_mul"):
        return None, projected
    if layout == "interleaved":
        return projected[..., ::2], projected[..., 1::2]
    half = projected.shape[-1] // 2
    return projected[..., :half], projected[..., half:]


def expert_mlp(x, experts, e):
    """One token through one expert, in float64."""
    projected = experts.gate_up_proj[e].double() @ x.double()
    if experts.gate_up_bias is not None:
        projected = projected + experts.gate_up_bias[e].double()
    hidden = activate(
        experts.activation, *split_gate(projected, experts.activation, experts.layout)
    )
    out = experts.down_proj[e].double() @ hidden
    return out if experts.down_bias is None else out + experts.down_bias[e].double()


def moe(hidden_states, experts, routing) -> Tensor:
    """[T, H] float64, token by token, expert by expert, of a Routing's or Decision's pairs."""
    out = torch.zeros(hidden_states.shape, dtype=torch.float64)
    ids, rows, weights = (
        torch.as_tensor(x).tolist() for x in (routing.expert_ids, routing.rows, routing.weights)
    )
    for t in range(len(ids)):
        for e, row, weight in zip(ids[t], rows[t], weights[t], strict=True):
            if row >= 0:
                out[t] += weight * expert_mlp(hidden_states[t], experts, e)
    return out


# --------------------------------------------------------- what the same dtype can do at best


def same_dtype_mlp(x, experts, e) -> Tensor:
    """Rows [n, H] through one expert, as a PyTorch user would write it, in the tensors' dtype."""
    bias = None if experts.gate_up_bias is None else experts.gate_up_bias[e]
    projected = functional.linear(x, experts.gate_up_proj[e], bias)
    gate, up = split_gate(projected, experts.activation, experts.layout)
    name = experts.activation
    if name == "swigluoai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        hidden = (up + 1) * (gate * torch.sigmoid(gate * 1.702))
    else:
        plain = {
            "silu": functional.silu,
            "gelu": functional.gelu,
            "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
            "relu": functional.relu,
            "relu2": lambda v: functional.relu(v) ** 2,
        }[name.removesuffix("_no_mul")]
        hidden = plain(up) if gate is None else plain(gate) * up
    return functional.linear(
        hidden, experts.down_proj[e], None if experts.down_bias is None else experts.down_bias[e]
    )


def same_dtype_moe(hidden_states, experts, routing) -> Tensor:
    """The same layer in the tensors' dtype, the way Transformers loops over experts."""
    out = torch.zeros_like(hidden_states)
    for e in range(experts.down_proj.shape[0]):
        hit = (routing.expert_ids == e) & (routing.rows >= 0)
        tokens, columns = hit.nonzero(as_tuple=True)
        if len(tokens):
            y = same_dtype_mlp(hidden_states[tokens], experts, e)
            weight = routing.weights[tokens, columns, None].to(y.dtype)
            out.index_add_(0, tokens, y * weight)
    return out
