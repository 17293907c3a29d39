"""``capmoe info``."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from ..backends import backends
from ..evaluate.machine import cpu_features, cpu_model, gpus, versions


def info() -> None:
    """Say what is installed, what runs where and why, and what the machine has."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for package, version in versions().items():
        table.add_row(package, version or "not installed")
    found = backends()
    for device, backend in found.serving.items():
        table.add_row(f"on {device}", _served(backend))
    for backend, reason in found.absent.items():
        table.add_row(f"not {backend}", reason)
    table.add_row("processor", cpu_model())
    table.add_row("features", ", ".join(cpu_features()) or "none of those the kernels use")
    table.add_row("threads", str(torch.get_num_threads()))
    table.add_row("GPU", ", ".join(gpus()) or "none that torch can use")
    Console(highlight=False).print(table)


def _served(backend: str) -> str:
    return "reference (plain PyTorch)" if backend == "reference" else f"{backend} kernels"
