"""The part of vLLM 0.32 that the plugin touches, small enough to run anywhere.

As in vLLM: making an UnquantizedFusedMoEMethod makes the class that was registered in its place, a
method owns no weights, and the layer asks it to process and to apply.
"""

from __future__ import annotations

import enum
import sys
from types import ModuleType, SimpleNamespace

import torch

METHOD = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"


class UnquantizedMoeBackend(enum.Enum):
    CPU = "CPU"
    OOT = "OOT"


class FusedMoEMethodBase:
    def __init__(self, moe):
        super().__init__()
        self.moe, self.moe_kernel = moe, None


class _Registry:
    """``vllm.model_executor.custom_op``, with a registry of its own."""

    def __init__(self):
        registry = self.op_registry_oot = {}

        class CustomOp(torch.nn.Module):
            def __new__(cls, *args, **kwargs):
                return super().__new__(registry.get(cls.__name__, cls))

            @classmethod
            def register_oot(cls, name):
                def decorator(replacement):
                    assert name not in registry, f"Duplicate op name: {name}"
                    registry[name] = replacement
                    return replacement

                return decorator

        self.CustomOp = CustomOp


def _method_class(custom_op):
    class UnquantizedFusedMoEMethod(FusedMoEMethodBase, custom_op):
        def __init__(self, moe):
            super().__init__(moe)
            self.unquantized_backend, self.experts_cls = UnquantizedMoeBackend.CPU, object
            self.supports_pre_processed_weights = True

    UnquantizedFusedMoEMethod.__module__ = METHOD
    return UnquantizedFusedMoEMethod


def replace_parameter(layer, name, tensor):
    setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False))


def install(monkeypatch):
    """Put it where ``import vllm`` looks. -> (the method's class, the registry, the environment)"""
    registry = _Registry()
    method = _method_class(registry.CustomOp)
    modules = {
        "vllm.envs": {"environment_variables": {}},
        "vllm.model_executor.custom_op": vars(registry),
        METHOD: {
            "UnquantizedFusedMoEMethod": method,
            "UnquantizedMoeBackend": UnquantizedMoeBackend,
            "replace_parameter": replace_parameter,
        },
    }
    for name, contents in modules.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            parent = ".".join(parts[:length])
            if parent not in modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return method, registry.op_registry_oot, modules["vllm.envs"]["environment_variables"]


def moe_config(**settings):
    """A FusedMoEConfig's attributes that the plugin reads."""
    parallel = {"enable_eplb": False, "dp_size": 1, "pcp_size": 1}
    for name in parallel:
        parallel[name] = settings.pop(name, parallel[name])
    plain = {
        "activation": "silu",
        "has_bias": False,
        "is_lora_enabled": False,
        "aiter_fmoe_shared_expert_enabled": False,
        "swiglu_alpha": None,
        "swiglu_beta": None,
        "swiglu_limit": None,
    }
    return SimpleNamespace(**(plain | settings), moe_parallel_config=SimpleNamespace(**parallel))


class Layer(torch.nn.Module):
    """A RoutedExperts that has loaded these weights."""

    def __init__(self, experts, activation="silu", expert_map=None, num_experts=None):
        super().__init__()
        names = {"w13_weight": experts.gate_up_proj, "w2_weight": experts.down_proj}
        names |= {"w13_bias": experts.gate_up_bias, "w2_bias": experts.down_bias}
        for name, tensor in names.items():
            if tensor is not None:
                replace_parameter(self, name, tensor.clone())
        self.activation, self.expert_map = activation, expert_map
        self.global_num_experts = experts.num_experts if num_experts is None else num_experts
        self.apply_router_weight_on_input = False
