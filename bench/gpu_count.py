"""Runs the CUDA operators in the emulator and counts: what gpu_counts.json is made of."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.routing import gate_options, moe_rows, select_options

from .gpu_cases import GATINGS, SKEW
from .gpu_counts import LEFT_OUT, Row, key
from .gpu_roofline import SHAPES, Shape

sys.path.insert(0, str(Path(__file__).parent.parent / "python_tests"))
from cuda_on_cpu.emulate import Kernel, Loaded, Report
from cuda_on_cpu.parse import parse
from cuda_on_cpu.runtime import launches
from cuda_on_cpu.runtime.launches import short_name
from cuda_on_cpu.runtime.operators import UseEmulatedCuda
from cuda_on_cpu.sass import sass_estimate

HMMA_FLOPS = 2 * 16 * 8 * 16
HIDDEN, INTERMEDIATE, EXPERTS = 512, 512, 2  # of the experts that are counted
FACTORS = (None, 1.0)
LAYER = ("route", "gate", "select")  # kernels, in this order
Launches = list[tuple[Kernel, Report]]


@contextlib.contextmanager
def launched() -> Iterator[Launches]:
    """The kernels that run within, and their reports."""
    seen: Launches = []
    launch = Kernel.launch

    def remembered(kernel: Kernel, *args, **options) -> Report:
        report = launch(kernel, *args, **options)
        seen.append((kernel, report))
        return report

    with UseEmulatedCuda(), mock.patch.object(launches.Kernel, "launch", remembered):
        yield seen


def alone(ptx: str, name: str) -> str:
    """A module's text whose other kernels are blank lines."""
    lines, keep = [], True
    for line in ptx.splitlines():
        entry = re.match(r"(?:\.\w+ )*\.entry (\w+)", line)
        if entry:
            keep = entry[1] == name
        elif re.match(r"\.(visible|weak|extern|func|section|file|global|const)\b", line):
            keep = True
        lines.append(line if keep else "")
    return "\n".join(lines)


@functools.cache
def by_itself(ptx: str, name: str, target: str) -> Kernel:
    text = alone(ptx, name)
    return Kernel(Loaded(parse(text), text), name, target)


def add_up(runs: Launches, work: float, per: str, sass: bool) -> Row:
    """Per ``work``; sectors are still those touched."""
    ptx = sum(report.counts["warp_instructions"] for _, report in runs)
    sides = ("global_load_sectors", "global_store_sectors")
    touched = sum(report.counts[side] for _, report in runs for side in sides)
    row = {"per": per, "ptx": round(ptx / work, 3), "sectors": touched}
    if sass:
        total = 0.0
        for kernel, report in runs:
            own = by_itself(kernel.loaded.ptx, kernel.name, kernel.target)
            total += sass_estimate(own, report).total
        row["sass"] = round(total / work, 3)
    return row


def over(row: Row, needed_bytes: int) -> Row:
    """Sectors over those of the bytes that must move."""
    return row | {"sectors": round(row["sectors"] / (needed_bytes / 32), 3)}


def whole_sectors(*arrays: int) -> int:
    """Bytes of arrays that begin at a sector."""
    return sum(-(-array // 32) * 32 for array in arrays)


def without_sectors(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "sectors"}


def logits_of(shape: Shape, tokens: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(tokens, shape.experts) + SKEW * torch.randn(shape.experts)


def routing_rows(model: str, tokens: int, factor: float | None, sass: bool) -> dict[str, Row]:
    """gate and select, or route, as the layer launches them, and select of a caller's own top-k.

    A gate that is in route is counted as an op. The layer's experts are as small as can be.
    """
    shape, gating, capacity = SHAPES[model], GATINGS[model], cm.Capacity(factor)
    up, down = torch.zeros(shape.experts, 16, 8), torch.zeros(shape.experts, 8, 8)
    logits, pairs = logits_of(shape, tokens), tokens * shape.top_k
    gate, select = (
        gate_options(gating, capacity, shape.experts),
        select_options(capacity, shape.experts),
    )
    rows = moe_rows(tokens, shape.top_k, capacity, shape.experts)
    inputs = (torch.zeros(tokens, 8), logits, None, *gate, None, None, *select, rows)
    with launched() as seen:
        torch.ops.capmoe.moe(*inputs, up, down, None, None, "silu", "concat")
    with launched() as by_op:
        ids, weights, _ = torch.ops.capmoe.gate(logits, None, *gate)
    with launched() as own:
        cm.select(ids, weights, shape.experts, capacity)
    runs = {op: [run for run in seen if short_name(run[0].name).startswith(op)] for op in LAYER}
    runs["gate"] = runs["gate"] or by_op
    runs["mark+select"] = own
    out = {}
    for op, launches_of in runs.items():
        if launches_of:
            work, per = (tokens, "token") if op in ("gate", "route") else (pairs, "pair")
            row = add_up(launches_of, work, per, sass)
            needed = whole_sectors(logits.nbytes, 4 * pairs, 4 * pairs)  # experts, weights
            row = over(row, needed) if op == "gate" else without_sectors(row)
            out[key(model, tokens, op, factor)] = row
    return out


def moving_rows(model: str, tokens: int, sass: bool) -> dict[str, Row]:
    """dispatch and combine, bfloat16, at the model's own width."""
    shape, out = SHAPES[model], {}
    pairs, row_bytes = tokens * shape.top_k, 2 * shape.hidden
    routing = cm.route(logits_of(shape, tokens), GATINGS[model])
    hidden = torch.ones(tokens, shape.hidden, dtype=torch.bfloat16)
    y = torch.ones(pairs, shape.hidden, dtype=torch.bfloat16)
    ops: list[tuple[str, Callable[[], Tensor], int, str, int]] = [
        ("dispatch", lambda: cm.dispatch(hidden, routing), pairs, "pair", pairs * 4),
        ("combine", lambda: cm.combine(y, routing), tokens, "token", pairs * 8),
    ]
    for op, run, work, per, indices in ops:
        with launched() as seen:
            run()
        moved = pairs + (pairs if op == "dispatch" else tokens)
        row = over(add_up(seen, work, per, sass), moved * row_bytes + indices)
        out[key(model, tokens, op, None)] = row
    return out


def expert_rows(model: str, tokens: int, sass: bool) -> dict[str, Row]:
    """Both launches of the experts, per tensor-core instruction that their rows need."""
    shape = SHAPES[model]
    each = max(1, tokens * shape.top_k // shape.experts)
    rows = each * EXPERTS
    up = torch.zeros(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=torch.bfloat16)
    down = torch.zeros(EXPERTS, HIDDEN, INTERMEDIATE, dtype=torch.bfloat16)
    x, order = torch.zeros(rows, HIDDEN, dtype=torch.bfloat16), torch.arange(rows).int().flip(0)
    ends = (torch.arange(EXPERTS + 1).int() * each, torch.full((EXPERTS,), each).int(), order)
    with launched() as seen:
        torch.ops.capmoe.grouped_mlp(x, up, down, None, None, *ends, "silu", "concat")
    needed = 6 * rows * HIDDEN * INTERMEDIATE / HMMA_FLOPS
    row = without_sectors(add_up(seen, needed, "HMMA", sass))
    return {key(model, tokens, "grouped_mlp", None): row}


def count_rows(model: str, tokens: int, sass: bool = False) -> dict[str, Row]:
    """All that is counted of one model with so many tokens; ``sass`` takes ptxas."""
    out = {}
    for factor in FACTORS:
        out |= routing_rows(model, tokens, factor, sass)
    if (model, tokens, "dispatch") not in LEFT_OUT:
        out |= moving_rows(model, tokens, sass)
    return out | expert_rows(model, tokens, sass)
