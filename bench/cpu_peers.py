"""The CPU layer beside everyone else's: ``make bench-cpu``, or ``python -m bench.cpu_peers``.

One thread and process CPU time, because cores may be shared; samples of all sides take turns, and
the median counts. Every answer is checked against float64 before it is timed. Ours is ``cm.moe``,
routing included; the others get their top-k for free. Before each sample of up to 32 tokens 1 GiB
is read and then a layer of tiny experts run, so that the weights come from memory and the code from
the caches, as in a model with many layers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from capmoe_kernels.benchmark.cases import DTYPES

from . import cpu_peers_layer as layer
from . import cpu_peers_parts as parts
from . import cpu_peers_rivals as rivals
from . import cpu_peers_routing as routing
from .cpu_layer import cpu_model
from .cpu_peers_cases import SHAPES
from .cpu_peers_child import in_child
from .cpu_peers_peaks import Peaks
from .cpu_peers_tables import markdown

PARTS = ("layer", "routing", "capacity", "threads", "call", "memory")
FAILED: list[str] = []
EVERYWHERE = ("bf16", "mixs")  # only these are worth a minute at T = 4096


def main() -> None:
    asked = _arguments()
    began, load = time.monotonic(), os.getloadavg()[0]
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rivals.load()
    peaks = Peaks()
    results: dict[str, Any] = {"peaks": peaks.flops()}
    usable = {dtype: layer.usable(dtype) for dtype in asked.dtype}
    results["absent"] = {dtype: out for dtype, (_, out) in usable.items()}
    results.update(_small_parts(asked, lambda: usable.get("bf16") or layer.usable("bf16")))
    if "layer" in asked.only:
        results.update(_layer(asked, usable, peaks, began + 60 * asked.minutes))
    results["header"] = _header(results["peaks"], peaks, load, time.monotonic() - began)
    wrong = [cell for cell in results.get("cells", []) if rivals.OURS in cell["wrong"]]
    FAILED.extend(
        f"ours is wrong: {cell['dtype']} {cell['shape']} {cell['tokens']}" for cell in wrong
    )
    results["failed"] = FAILED
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))
    if FAILED:
        raise SystemExit(1)


def _small_parts(
    asked: argparse.Namespace, usable: Callable[[], tuple[list[str], dict[str, str]]]
) -> dict[str, Any]:
    seconds, tokens = asked.seconds, max(asked.tokens or layer.TOKENS)
    shape = "olmoe" if "olmoe" in asked.shape else asked.shape[0]
    dense = [name for name in ("mixs", "olmoe") if name in asked.shape] or asked.shape
    measures: dict[str, Callable[[], Any]] = {
        "routing": lambda: routing.measure(seconds),
        "capacity": lambda: parts.capacity(2 * seconds, shape, tokens),
        "threads": lambda: parts.threads(seconds, dense, tokens),
        "call": lambda: parts.call_cost(seconds, usable()[0]),
        "memory": lambda: parts.memory(shape, tokens),
    }
    return {name: _guarded(name, measures[name]) for name in asked.only if name in measures}


def _guarded(name: str, measure: Callable[[], Any]) -> Any:
    """In a child; where that fails the rest of the run goes on, and the exit status tells."""
    print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
    try:
        return in_child(measure)
    except RuntimeError as error:
        FAILED.append(f"{name}: {error}")
        return None


def _layer(
    asked: argparse.Namespace,
    usable: dict[str, tuple[list[str], dict[str, str]]],
    peaks: Peaks,
    end: float,
) -> dict[str, Any]:
    cells: list[layer.Cell] = []
    skipped = []
    for dtype in asked.dtype:
        for shape in asked.shape:
            if time.monotonic() > end:
                skipped.append(f"{dtype} {shape}")
                continue
            whole = asked.tokens or dtype in EVERYWHERE or shape in EVERYWHERE
            tokens = asked.tokens or (layer.TOKENS if whole else layer.TOKENS[:-1])
            plan = layer.Plan(dtype, shape, tuple(tokens), asked.seconds)
            measure = partial(layer.measure, plan, usable[dtype][0], peaks)
            cells += _guarded(f"{dtype} {shape}", measure) or []
    return {"cells": cells, "skipped": skipped}


def _header(
    flops: dict[str, float], peaks: Peaks, load: float, seconds: float
) -> dict[str, object]:
    rates = {unit: f"{rate / 1e9:.0f} GFLOP/s" for unit, rate in flops.items()}
    return {
        "cpu": cpu_model(),
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "one core": {**rates, "reads": f"{peaks.bandwidth() / 1e9:.1f} GB/s"},
        "versions": rivals.versions(),
        "load average before and after": f"{load:.1f} and {os.getloadavg()[0]:.1f}",
        "minutes": f"{seconds / 60:.1f}",
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16", "fp32", "fp16"])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["mixs", "olmoe", "qwen3"])
    parser.add_argument(
        "--tokens", nargs="+", type=int, help="default: up to 4096 where affordable"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of samples per cell")
    parser.add_argument("--minutes", type=float, default=12.0, help="no new table after these")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
