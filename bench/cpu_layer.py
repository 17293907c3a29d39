"""Is the CPU layer faster than a loop of ``F.linear``? ``python -m bench.cpu_layer``.

Ours twice: on packed weights and on the weights as they come. One thread and process CPU time,
because cores may be shared; samples of the three alternate, and the median counts. All get the same
routing for free. Times end at the summed [T, H]. The answer is checked first, against float64.
With few tokens the weights must come from memory, as in a model of many layers: 1 GiB is read
before each sample. malloc is told to keep what is freed, as a serving process would: otherwise
(``--malloc default``) cells with many tokens measure how fast the system clears pages.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.benchmark.cases import DTYPES
from capmoe_kernels.benchmark.loop import Loop, truth
from capmoe_kernels.benchmark.models import PRESETS, Shape
from capmoe_kernels.benchmark.timing import cpu_seconds, keep_freed_memory

SHAPES = {
    "mixs": Shape(1024, 2048, 8, 2),
    "olmoe": PRESETS["olmoe"].shape,
    "qwen3": PRESETS["qwen3-30b-a3b"].shape,
}
TOKENS = (1, 32, 512, 4096)
CHECKED_TOKENS = 16
COLD_TOKENS = 32  # up to so many, weights come from memory


class Case(NamedTuple):
    hidden_states: Tensor  # [T, H]
    experts: cm.Experts
    routing: cm.Routing


def make_experts(shape: Shape, dtype: torch.dtype) -> cm.Experts:
    up = torch.empty(shape.experts, 2 * shape.intermediate, shape.hidden, dtype=dtype)
    down = torch.empty(shape.experts, shape.hidden, shape.intermediate, dtype=dtype)
    return cm.Experts(up.normal_(0, shape.hidden**-0.5), down.normal_(0, shape.intermediate**-0.5))


def make_case(shape: Shape, experts: cm.Experts, tokens: int) -> Case:
    hidden_states = torch.randn(tokens, shape.hidden).to(experts.down_proj.dtype)
    routing = cm.route(torch.randn(tokens, shape.experts), cm.Gating(top_k=shape.top_k))
    return Case(hidden_states, experts, routing)


def ours(case: Case) -> Tensor:
    experts, routing = case.experts, case.routing
    y = torch.ops.capmoe.grouped_mlp(
        case.hidden_states,
        experts.gate_up_proj,
        experts.down_proj,
        None,
        None,
        routing.expert_offsets,
        routing.tokens_per_expert,
        routing.row_tokens,
        experts.activation,
        experts.layout,
    )
    out: Tensor = torch.ops.capmoe.combine(y, routing.rows, routing.weights)
    return out


def check(case: Case, packed: Case, loop: Loop) -> None:
    tokens = min(CHECKED_TOKENS, case.hidden_states.shape[0])
    expected = truth(*case, tokens)
    out = ours(case)
    error = (out[:tokens] - expected).abs().max().item()
    loop_error = (loop()[:tokens] - expected).abs().max().item()
    slack = torch.finfo(case.hidden_states.dtype).eps * expected.abs().max().item()
    if not error <= 2 * loop_error + slack:
        raise SystemExit(f"wrong answer: error {error:.3g}, the loop's {loop_error:.3g}")
    if not ours(packed).equal(out):
        raise SystemExit("packed weights give another answer")


def measure(case: Case, packed: Case, seconds: float) -> tuple[list[float], int]:
    """Median seconds of packed weights, of plain ones and of the loop, and how many of each."""
    loop = Loop(*case)
    check(case, packed, loop)  # warms all up, too
    calls = (lambda: ours(packed), lambda: ours(case), loop)
    samples: list[list[float]] = []
    other = torch.ones(2**28 if case.hidden_states.shape[0] <= COLD_TOKENS else 0)
    end = time.monotonic() + seconds
    while len(samples) < 5 or (time.monotonic() < end and len(samples) < 50):
        samples.append([])
        for call in calls:
            other.sum()
            samples[-1].append(cpu_seconds(call))
    return [statistics.median(times) for times in zip(*samples, strict=True)], len(samples)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    isa = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{names[0] if names else platform.machine()} ({' '.join(isa) or 'no x86 vectors'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["mixs", "olmoe"])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--seconds", type=float, default=4.0, help="of samples per case")
    parser.add_argument("--malloc", choices=("keep", "default"), default="keep")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    if arguments.malloc == "keep":
        keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    header = {
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "threads": 1,
        "malloc": arguments.malloc,
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }
    table = Table(title=", ".join(f"{key} {value}" for key, value in header.items()))
    columns = (
        "dtype",
        "shape",
        "T",
        "packed ms",
        "plain ms",
        "loop ms",
        "loop / packed",
        "/ plain",
    )
    for column in (*columns, "samples"):
        table.add_column(column, justify="left" if column in ("dtype", "shape") else "right")
    results = []
    for dtype in arguments.dtype:
        for name in arguments.shape:
            experts = make_experts(SHAPES[name], DTYPES[dtype])
            packed = experts.pack()
            for tokens in arguments.tokens:
                case = make_case(SHAPES[name], experts, tokens)
                times, samples = measure(case, case._replace(experts=packed), arguments.seconds)
                ratios = [times[2] / mine for mine in times[:2]]
                shown = [f"{1e3 * x:.2f}" for x in times] + [f"{x:.2f}" for x in ratios]
                table.add_row(dtype, name, str(tokens), *shown, str(samples))
                milliseconds = dict(zip(("packed", "plain", "loop"), times, strict=True))
                cell = {"dtype": dtype, "shape": name, "tokens": tokens, "samples": samples}
                cell |= {f"{what}_ms": 1e3 * x for what, x in milliseconds.items()}
                results.append(cell)
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({**header, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
