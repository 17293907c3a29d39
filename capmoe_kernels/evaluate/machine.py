"""What a measurement ran on: versions, processor, GPU."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import __version__

_FEATURES = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "avx512_vnni": "AVX512-VNNI",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "bf16": "BF16",
    "sve": "SVE",
}


def versions() -> dict[str, str | None]:
    """Package to version; None where it is not installed."""
    out: dict[str, str | None] = {"capmoe_kernels": __version__, "torch": torch.__version__}
    for package in ("transformers", "triton"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = None
    return out | {"python": platform.python_version()}


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The instruction sets that matter to the kernels and that this processor has."""
    found = torch.cpu.get_capabilities()
    return [name for key, name in _FEATURES.items() if found.get(key)]


def gpus() -> list[str]:
    """Names of the GPUs that torch can use."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def describe() -> dict[str, object]:
    """Everything above, for a report."""
    return {
        "cpu": cpu_model(),
        "cpu_features": cpu_features(),
        "gpus": gpus(),
        "system": platform.platform(),
    }
