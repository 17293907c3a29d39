"""The class that takes the place of vLLM's UnquantizedFusedMoEMethod."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..capacity import Capacity
from ..compat.activations import expert_activation
from ..compat.experts import require_expert_map, require_hidden, route_topk, run_experts
from ..compat.weights import as_experts
from ..experts import Experts
from .vllm import Settings

_SWIGLU = ("swiglu_alpha", "swiglu_beta", "swiglu_limit")


def make_method(base: Any, settings: Settings) -> type:
    """vLLM's method of a FusedMoE layer with unquantised weights, on these kernels.

    Args:
        base: vLLM's ``UnquantizedFusedMoEMethod``, whose weights' names, shapes and loading stay.
        settings: the bound.

    Returns:
        A subclass; making one of it raises ValueError, naming the setting, for a layer that these
        kernels would not run as vLLM does.
    """
    kernels = import_module(base.__module__)

    class CapmoeFusedMoEMethod(base):  # type: ignore[misc]
        """Routing is vLLM's; what its router chose is bounded, then run by these kernels."""

        def __init__(self, moe: Any):
            _check_layer(moe)
            _announce(settings)
            # Not base's own: it chooses among vLLM's kernels, and refuses sizes that they lack.
            super(base, self).__init__(moe)
            self.unquantized_backend = kernels.UnquantizedMoeBackend.OOT
            self.experts_cls = None
            self.supports_pre_processed_weights = False
            self.experts: Experts | None = None

        @property
        def supports_eplb(self) -> bool:
            return False  # it moves weights that may have been packed

        @property
        def is_monolithic(self) -> bool:
            return False  # the router is vLLM's

        def process_weights_after_loading(self, layer: Any) -> None:
            experts = _experts_of(layer, self.moe)
            if layer.expert_map is not None:
                device = experts.down_proj.device
                num_global = layer.global_num_experts
                require_expert_map(layer.expert_map, num_global, experts.num_experts, device)
            self.experts = experts.pack()
            # The layer's parameters are the packed ones from here on, so that there is one copy.
            for name, packed in (
                ("w13_weight", self.experts.gate_up_proj),
                ("w2_weight", self.experts.down_proj),
            ):
                if packed.data_ptr() != getattr(layer, name).data_ptr():
                    kernels.replace_parameter(layer, name, packed)

        def apply(
            self,
            layer: Any,
            x: Tensor,
            topk_weights: Tensor,
            topk_ids: Tensor,
            shared_experts: Any,
            shared_experts_input: Tensor | None,
        ) -> Tensor:
            assert self.experts is not None, "vLLM processes weights before it runs them"
            require_hidden(x, topk_ids.shape[0], self.experts)
            routing = route_topk(
                topk_ids,
                topk_weights,
                self.experts.num_experts,
                _bound(settings, x),
                expert_map=layer.expert_map,
            )
            on_input = layer.apply_router_weight_on_input
            return run_experts(x, self.experts, routing, weights_on_input=on_input)

    return CapmoeFusedMoEMethod


@cache
def _announce(settings: Settings) -> None:
    """Say once what runs; vLLM sets its log up too late for :func:`.vllm.register` to say it."""
    logging.getLogger("vllm.capmoe_kernels").info(
        "capmoe_kernels runs the unquantised FusedMoE layers: capacity factor %s, policy %s,"
        " in steps of at least %d tokens",
        settings.capacity.factor,
        settings.capacity.policy,
        settings.min_tokens,
    )


def _bound(settings: Settings, x: Tensor) -> Capacity | None:
    if settings.min_tokens == 1:
        return settings.capacity
    if torch.compiler.is_compiling():  # vLLM compiles for all sizes at once and drops the guards
        raise ValueError(
            "CAPMOE_VLLM_MIN_TOKENS must be 1 where vLLM compiles through its MoE layers, as it"
            " does on a CPU: set enforce_eager=True"
        )
    return settings.capacity if x.shape[0] >= settings.min_tokens else None


def _experts_of(layer: Any, moe: Any) -> Experts:
    constants = [getattr(layer, name, None) for name in _SWIGLU]
    up_bias, down_bias = (layer.w13_bias, layer.w2_bias) if moe.has_bias else (None, None)
    kind = expert_activation(layer.activation, *constants)
    return as_experts(layer.w13_weight, layer.w2_weight, up_bias, down_bias, kind)


def _check_layer(moe: Any) -> None:
    """Raise where a layer needs what these kernels lack."""
    parallel = moe.moe_parallel_config
    reasons = {
        "LoRA": moe.is_lora_enabled,
        "expert load balancing (EPLB)": parallel.enable_eplb,
        "data parallelism": parallel.dp_size > 1,
        "prefill context parallelism": parallel.pcp_size > 1,
        "fused shared experts": moe.aiter_fmoe_shared_expert_enabled,
    }
    found = [name for name, there in reasons.items() if there]
    if found:
        raise ValueError(
            f"capmoe_kernels does not run FusedMoE layers with {', '.join(found)}:"
            " unset CAPMOE_VLLM_CAPACITY_FACTOR to run them on vLLM's kernels"
        )
    constants = [getattr(moe, name, None) for name in _SWIGLU]
    expert_activation(moe.activation, *constants)
