"""Runs the CUDA operators in the emulator and counts: what gpu_counts.json is made of."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from .count_inputs import (
    EXPERTS,
    HIDDEN,
    INTERMEDIATE,
    Routed,
    expert_rows_of,
    experts_call,
    moving_calls,
)
from .gpu_counts import LEFT_OUT, Row, key
from .gpu_roofline import SHAPES

sys.path.insert(0, str(Path(__file__).parent.parent / "python_tests"))
from cuda_on_cpu.emulate import Kernel, Loaded, Report
from cuda_on_cpu.parse import parse
from cuda_on_cpu.runtime import launches
from cuda_on_cpu.runtime.launches import short_name
from cuda_on_cpu.runtime.operators import UseEmulatedCuda
from cuda_on_cpu.sass import sass_estimate

HMMA_FLOPS = 2 * 16 * 8 * 16
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


def routing_rows(model: str, tokens: int, factor: float | None, sass: bool) -> dict[str, Row]:
    """gate and select, or route, as the layer launches them, and select of a caller's own top-k.

    A gate that is in route is counted as an op.
    """
    routed = Routed(model, tokens, factor)
    logits, pairs = routed.logits, tokens * routed.shape.top_k
    with launched() as seen:
        routed.layer()
    with launched() as by_op:
        ids, weights, _ = routed.gate()
    with launched() as own:
        routed.select(ids, weights)
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
    sizes = {"dispatch": (pairs, "pair", pairs * 4), "combine": (tokens, "token", pairs * 8)}
    for op, run in moving_calls(model, tokens).items():
        work, per, indices = sizes[op]
        with launched() as seen:
            run()
        moved = pairs + (pairs if op == "dispatch" else tokens)
        row = over(add_up(seen, work, per, sass), moved * row_bytes + indices)
        out[key(model, tokens, op, None)] = row
    return out


def expert_rows(model: str, tokens: int, sass: bool) -> dict[str, Row]:
    """Both launches of the experts, per tensor-core instruction that their rows need."""
    run = experts_call(model, tokens)
    with launched() as seen:
        run()
    needed = 6 * expert_rows_of(model, tokens) * EXPERTS * HIDDEN * INTERMEDIATE / HMMA_FLOPS
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
