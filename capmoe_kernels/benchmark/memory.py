"""Whether the weights fit, before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import torch

from ..evaluate.errors import UsageError
from .models import Shape

_GB = 1e9
_CGROUP = Path("/sys/fs/cgroup")


def needed_bytes(shape: Shape, tokens: int, itemsize: int, copies: bool) -> int:
    """At most, about: the weights, their packed copy, and what the most tokens take."""
    expert = 3 * shape.hidden * shape.intermediate
    weights = shape.experts * expert * itemsize * (2 if copies else 1)
    # Inputs and outputs of both products for every pair, and a copy of them.
    rows = tokens * shape.top_k * 2 * (2 * shape.hidden + 3 * shape.intermediate) * itemsize
    in_float64 = 8 * (expert + 4 * tokens * shape.hidden)
    return weights + rows + in_float64


def available_bytes(device: torch.device) -> int | None:
    """What may still be allocated; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [free for free in (_meminfo(), _cgroup()) if free is not None]
    return min(found, default=None)


def check_fits(name: str, needed: int, device: torch.device) -> None:
    """Raise UsageError where the layer is too large."""
    free = available_bytes(device)
    if free is not None and needed > free:
        raise UsageError(
            f"{name}: needs {needed / _GB:.1f} GB of memory, and {free / _GB:.1f} GB are free:"
            " take smaller sizes, fewer tokens, a shorter --dtype, or leave packed and capacity"
            " out of --contenders"
        )


def _meminfo() -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0][1]) if found else None


def _cgroup() -> int | None:
    """Of a container's limit: cached files give way, so they count as free."""
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    stat = (_CGROUP / "memory.stat").read_text().split()
    cached = int(stat[stat.index("inactive_file") + 1])
    return int(limit.read_text()) - int(used.read_text()) + cached
