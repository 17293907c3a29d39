"""Transformers 5's registry of experts implementations: any such model, dropless, on our kernels.

    register_experts_implementation()
    AutoModelForCausalLM.from_pretrained(..., experts_implementation="capmoe")
    model.set_experts_implementation("capmoe")

The router stays the model's. There is no capacity here: an experts module is told neither which
tokens are padding nor whether the call is a step of decoding, so it can't be bounded rightly. For
that there is :func:`~capmoe_kernels.integrations.transformers.apply`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..experts import Activation, Experts, Layout
from ..layer import combine, dispatch, grouped_mlp
from ..reference.grouped_mlp import activate
from ..routing import select
from .sources import Sources

_ATTRIBUTE = "_capmoe_experts"


def register_experts_implementation(name: str = "capmoe", *, pack: bool = False) -> None:
    """Make ``experts_implementation=name`` known to Transformers 5.

    Args:
        name: not one of Transformers' own.
        pack: run on :meth:`Experts.pack` of the weights: see
            :func:`~capmoe_kernels.integrations.transformers.apply`. The copy lives as long as the
            module.

    Raises:
        ImportError: this Transformers has no such registry.
        ValueError: Transformers has an implementation of that name.

    A model's first call raises ValueError where its experts compute what the kernels don't. It may
    not be compiled, since it reads the weights.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    known = ALL_EXPERTS_FUNCTIONS.get(name)
    if name == "eager" or (known is not None and not hasattr(known, "capmoe_pack")):
        raise ValueError(f"name must not be one that Transformers has, got {name!r}")
    ALL_EXPERTS_FUNCTIONS.register(name, _forward(pack))


def _forward(pack: bool) -> Callable[..., Tensor]:
    def capmoe_experts_forward(
        self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        experts = _experts_of(self, pack)
        # As Transformers does under autocast, and where a norm has promoted the tokens.
        tokens = hidden_states.to(experts.down_proj.dtype)
        # An id of E stands for an expert of another rank: select routes it nowhere.
        routing = select(top_k_index, top_k_weights.float(), experts.num_experts)
        y = grouped_mlp(dispatch(tokens, routing), experts, routing)
        if self.has_post_expert_norm:
            y = self.post_expert_norm(y)
        return combine(y, routing).to(hidden_states.dtype)

    capmoe_experts_forward.capmoe_pack = pack  # type: ignore[attr-defined]
    return capmoe_experts_forward


class _Held:
    """A module's experts, kept on it; its copies read their own."""

    def __init__(self, module: nn.Module, pack: bool) -> None:
        self.pack = pack
        with torch.no_grad():
            experts = read_experts(module)
            self.experts = experts.pack() if pack else experts.concat()
        self.sources = Sources(module, self.experts)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _experts_of(module: nn.Module, pack: bool) -> Experts:
    held: _Held | None = vars(module).get(_ATTRIBUTE)
    if held is None or held.pack != pack or not held.sources.unchanged():
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"call the model once before it is compiled: the weights of {type(module).__name__}"
                " have not been read, or have been replaced"
            )
        held = vars(module)[_ATTRIBUTE] = _Held(module, pack)
    if torch.is_grad_enabled() and held.sources.requires_grad():
        raise RuntimeError(
            f"{type(module).__name__} requires grad, but capmoe_kernels is inference-only: call the"
            " model under torch.no_grad() or torch.inference_mode()"
        )
    return held.experts


def read_experts(module: Any) -> Experts:
    """The experts of a module with ``@use_experts_implementation``, as Transformers describes them.

    Raises:
        ValueError: its gate or activation is none of :data:`capmoe_kernels.experts.Activation`.
        TypeError: a weight is of another kind than the kernels take.
    """
    name = "gate_up_proj" if module.has_gate else "up_proj"
    up, down = getattr(module, name), module.down_proj
    if module.is_transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    activation, layout = _activation_of(module, up.shape[1])
    return Experts(
        up,
        down,
        getattr(module, f"{name}_bias") if module.has_bias else None,
        module.down_proj_bias if module.has_bias else None,
        activation,
        layout,
    )


def _activation_of(module: Any, width: int) -> tuple[Activation, Layout]:
    """What the module's gate does to a sample, and so to any: names and flags don't tell it all."""
    theirs = module._apply_gate if module.has_gate else module.act_fn
    sample = _sample(width).to(module.down_proj.device)
    expected = theirs(sample)
    for activation in get_args(Activation):
        if activation.endswith("_no_mul") == bool(module.has_gate):
            continue
        for layout in get_args(Layout) if module.has_gate else ("concat",):
            ours = activate(sample, activation, layout)
            if ours.shape == expected.shape and torch.allclose(ours, expected, 1e-5, 1e-5):
                return activation, layout
    raise ValueError(
        f"{type(module).__name__} has an activation or a gate that capmoe_kernels has not:"
        f" {getattr(module, 'act_fn', None) or theirs}"
    )


def _sample(width: int) -> Tensor:
    """[32, width] from 1e-2 to 1e4, of both signs: a limit of any use shows."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(32, width, generator=generator) * 6 - 2
    signs = torch.randint(0, 2, (32, width), generator=generator) * 2 - 1
    return signs * 10**exponents
