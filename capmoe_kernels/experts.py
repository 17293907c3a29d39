"""The experts' weights, as Transformers and vLLM keep them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ._checks import FLOATS, require_choice, require_tensor
from .arrays import is_foreign, to_tensor

Activation = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "swigluoai",
    "silu_no_mul",
    "gelu_no_mul",
    "gelu_tanh_no_mul",
    "relu_no_mul",
    "relu2_no_mul",
]
Layout = Literal["concat", "interleaved"]
_Packed = Literal["packed"]
WEIGHTS = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")


@dataclass(frozen=True, eq=False)
class Experts:
    """Weights of E feed-forward experts of hidden size H and intermediate size F.

    A gated expert computes ``down(act(gate(x)) * up(x))``, a plain one ``down(act(up(x)))``.
    NumPy, JAX and other arrays with ``__dlpack__`` become torch tensors of the same memory.

    Attributes:
        gate_up_proj: [E, 2F, H], or [E, F, H] for a plain MLP. float32, bfloat16 or float16.
        down_proj: [E, H, F], same dtype and device.
        gate_up_bias: [E, 2F] (or [E, F]), same dtype, or None.
        down_bias: [E, H], same dtype, or None.
        activation: gated: ``"silu"`` (SwiGLU), ``"gelu"`` (erf), ``"gelu_tanh"``, ``"swigluoai"``
            (GPT-OSS: gate clamped to 7, up to +-7, ``(up + 1) * gate * sigmoid(1.702 * gate)``).
            Plain: ``"silu_no_mul"``, ``"gelu_no_mul"``, ``"gelu_tanh_no_mul"``, ``"relu_no_mul"``,
            ``"relu2_no_mul"`` (squared relu).
        layout: of gate_up_proj's 2F rows: ``"concat"``, all gate rows, then all up rows
            (Transformers, vLLM), or ``"interleaved"``, gate and up alternating (GPT-OSS). Never
            guessed from shapes.

    Raises:
        TypeError, ValueError: naming the tensor and what it expects.
    """

    gate_up_proj: Tensor
    down_proj: Tensor
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    activation: Activation = "silu"
    layout: Layout | _Packed = "concat"

    def __post_init__(self) -> None:
        require_choice("Experts.activation", self.activation, get_args(Activation))
        require_choice("Experts.layout", self.layout, get_args(Layout))
        self._share_arrays()
        up, down = self.gate_up_proj, self.down_proj
        require_tensor("Experts.down_proj", down, [None, None, None], FLOATS, meaning="E, H, F")
        num_experts, hidden, intermediate = down.shape
        if 0 in down.shape:
            raise ValueError(
                f"Experts.down_proj must have E, H and F of at least 1, got {list(down.shape)}"
            )
        up_rows, meaning = 2 * intermediate, "E, 2F, H"
        if not self.is_gated:
            up_rows, meaning = intermediate, "E, F, H for a plain MLP"
            if self.layout != "concat":
                raise ValueError(
                    f"Experts.layout must be 'concat' for {self.activation!r}, which has no gate"
                )
        same, device = (down.dtype,), down.device
        shape = [num_experts, up_rows, hidden]
        require_tensor("Experts.gate_up_proj", up, shape, same, device, meaning)
        if self.gate_up_bias is not None:
            shape = [num_experts, up_rows]
            require_tensor("Experts.gate_up_bias", self.gate_up_bias, shape, same, device)
        if self.down_bias is not None:
            shape = [num_experts, hidden]
            require_tensor("Experts.down_bias", self.down_bias, shape, same, device)

    def _share_arrays(self) -> None:
        for name in WEIGHTS:
            value = getattr(self, name)
            if is_foreign(value):
                object.__setattr__(self, name, to_tensor(f"Experts.{name}", value))

    @property
    def is_gated(self) -> bool:
        return not self.activation.endswith("_no_mul")

    @property
    def num_experts(self) -> int:
        return self.down_proj.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.down_proj.shape[1]

    @property
    def intermediate_size(self) -> int:
        return self.down_proj.shape[2]

    def pack(self) -> Experts:
        """The same experts in the layout the kernels read fastest; call it once, keep the result.

        Where the CPU backend serves, the weights of CPU tensors are copied into its own layout
        (:class:`~capmoe_kernels.packed_experts.PackedExperts`): faster from the first token on,
        and no result changes by a bit; the copy does not follow later changes of these weights.
        Elsewhere this is :meth:`concat`.

        Raises:
            RuntimeError: a weight requires grad, outside ``torch.no_grad()``; only where it copies.
        """
        from .backends import backends
        from .packed_experts import pack

        on_cpu = self.down_proj.device.type == "cpu" and backends().serving["cpu"] == "cpu"
        return pack(self) if on_cpu else self.concat()

    def concat(self) -> Experts:
        """The same experts with dense weights, gate rows before up rows.

        Tensors that are so already are shared, not copied.
        """
        up, down, bias = self.gate_up_proj, self.down_proj.contiguous(), self.gate_up_bias
        if self.layout == "interleaved":
            up = _gate_then_up(up)
        bias = None if bias is None else self.concat_bias(bias)
        return replace(
            self, gate_up_proj=up.contiguous(), down_proj=down, gate_up_bias=bias, layout="concat"
        )

    def concat_bias(self, bias: Tensor) -> Tensor:
        return _gate_then_up(bias) if self.layout == "interleaved" else bias


def _gate_then_up(interleaved: Tensor) -> Tensor:
    return torch.cat([interleaved[:, ::2], interleaved[:, 1::2]], dim=1)
