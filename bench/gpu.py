"""How fast is the layer on this GPU, and how near to what the GPU can do? ``python -m bench.gpu``.

The answer is checked first: integers against the reference, floats against float64, the graph
against the eager call. Times are medians of CUDA graphs whose buffers rotate beyond the cache. The
floor of an op is what a copy, or a sum, and a product, measured in the same run, would need for its
bytes and operations. ``--check`` stops after checking.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import capmoe_kernels as cm

from .gpu_cases import OPS, SKEW, Case, call, dropless_flops, make_case, make_experts, work
from .gpu_check import check_case, check_rival
from .gpu_rivals import EAGER, RIVALS, Given
from .gpu_roofline import SHAPES, TOKENS, Limits
from .gpu_timing import copies_beyond_cache, eager_us, graph_us, measure_limits


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = [name for name in SHAPES if name != "dsv3"]
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=default)
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--factor", type=float, help="capacity factor; dropless without it")
    parser.add_argument("--skew", type=float, default=SKEW, help="of the experts' popularity")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--seconds", type=float, default=0.15, help="per number")
    parser.add_argument("--check", action="store_true", help="do not time anything")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def cases_in_turn(
    name: str, experts: cm.Experts, tokens: int, capacity: cm.Capacity, skew: float
) -> list[Case]:
    """As many as make every call find its activations out of the cache."""
    shape = SHAPES[name]
    popularity = skew * torch.randn(shape.experts, device="cuda")
    activations = tokens * (2 * shape.top_k + 1) * shape.hidden * 2
    count = copies_beyond_cache(activations)
    return [make_case(name, experts, tokens, capacity, popularity) for _ in range(count)]


def time_ops(cases: list[Case], ops: list[str], limits: Limits, seconds: float) -> Iterator[Any]:
    for op in ops:
        us = graph_us([partial(call, case, op) for case in cases], seconds)
        needed = [work(case, op) for case in cases]
        floor = sum(one.floor_us(limits) for one in needed) / len(cases)
        flops = sum(one.flops for one in needed) / len(cases)
        yield {"what": op, "us": us, "floor_us": floor, "tflops": flops / us / 1e6}


def time_rivals(cases: list[Case], names: list[str], seconds: float) -> Iterator[Any]:
    """Those that can run here; for the others, why not."""
    for name in names:
        try:
            runs = [RIVALS[name](Given(case)) for case in cases]
            timed = eager_us if name in EAGER else graph_us
            if cases[0].capacity.factor is None:  # else ours drops what others compute
                check_rival(cases[0], runs[0]())
            us = timed(runs, seconds)
            yield {"what": name, "us": us, "tflops": dropless_flops(cases[0]) / us / 1e6}
        except Exception as error:  # a rival's failure is an answer, too
            torch.cuda.synchronize()
            yield {"what": name, "why_not": f"{type(error).__name__}: {error}"[:200]}


def add_rows(table: Table, name: str, tokens: int, rows: list[dict[str, Any]]) -> None:
    ours = next((row["us"] for row in rows if row["what"] == "moe"), None)
    for row in rows:
        if "why_not" in row:
            continue
        floor, us = row.get("floor_us"), row["us"]
        table.add_row(
            name,
            str(tokens),
            row["what"],
            f"{us:.1f}",
            f"{floor:.1f}" if floor else "",
            f"{floor / us:.0%}" if floor else "",
            f"{row['tflops']:.0f}" if row["tflops"] >= 1 else "",
            f"{us / ours:.2f}" if ours and row["what"] not in OPS else "",
        )
    table.add_section()


def header(limits: Limits | None) -> dict[str, Any]:
    out = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }
    if limits is not None:
        out["memory_tb_per_s"] = round(limits.bandwidth / 1e12, 3)
        out["matmul_tflops"] = round(limits.flops / 1e12, 1)
    return out


def main() -> None:
    arguments = parse()
    if not torch.cuda.is_available() or cm.backends().serving.get("cuda") != "cuda":
        raise SystemExit(f"the CUDA kernels cannot run here:\n{cm.backends()}")
    console = Console(width=120)
    torch.manual_seed(0)
    limits = None if arguments.check else measure_limits()
    table = Table(title=", ".join(f"{key} {value}" for key, value in header(limits).items()))
    for column in ("model", "T", "what", "us", "floor us", "of floor", "TFLOP/s", "/ ours"):
        table.add_column(column, justify="left" if column in ("model", "what") else "right")
    results, absent = [], {}
    for name in arguments.models:
        capacity, experts = cm.Capacity(arguments.factor), make_experts(SHAPES[name])
        for tokens in arguments.tokens:
            cases = cases_in_turn(name, experts, tokens, capacity, arguments.skew)
            console.print(f"{name} T={tokens}: {check_case(cases[0])}")
            if limits is None:
                continue
            rows = list(time_ops(cases, arguments.ops, limits, arguments.seconds))
            rows += time_rivals(cases, arguments.rivals, arguments.seconds)
            add_rows(table, name, tokens, rows)
            absent |= {row["what"]: row["why_not"] for row in rows if "why_not" in row}
            results += [{"model": name, "tokens": tokens, **row} for row in rows]
            del cases
        del experts
        torch.cuda.empty_cache()
    if limits is not None:
        console.print(table)
        for name, reason in absent.items():
            console.print(f"not timed: {name}: {reason}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({**header(limits), "results": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
