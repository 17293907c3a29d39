"""From the ranks' samples to the tables of ``bench.expert_parallel``."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from capmoe_kernels.distributed import Costs, Placement, step_seconds, straggler
from capmoe_kernels.distributed.straggler_counts import counts_of_loads

from .expert_parallel_cases import DROPLESS, SETTINGS, SHARDED, Setting
from .expert_parallel_layers import PHASES

HEADER = [
    "setting",
    "dropped %",
    "busiest rank / mean",
    "step ms",
    "speed-up",
    "bound",
    "model ms",
    "model / measured",
]
PHASE_HEADER = ["setting", *PHASES, "wire rows, live", "wire rows, sent"]


def results(ranks: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One case: its tables, and the numbers they are made of."""
    loads = torch.tensor([rank["loads"] for rank in ranks])[None]
    costs = _mean([rank["costs"] for rank in ranks])
    lines = [_line(setting, ranks, loads, costs) for setting in SETTINGS]
    base = next(line["seconds"] for line in lines if line["setting"] == DROPLESS.name)
    for line in lines:
        line["speed"] = base / line["seconds"]
    return {
        "case": ranks[0]["case"],
        "costs": vars(costs),
        "lines": lines,
        "table": [_cells(line) for line in lines],
        "phase_table": [_phase_cells(line) for line in lines],
    }


def _mean(costs: list[dict[str, Any]]) -> Costs:
    """Of the ranks; they count rows by one."""
    names = [name for name in costs[0] if name != "rows_per_tile"]
    return Costs(**{name: statistics.mean(each[name] for each in costs) for name in names})


def _line(
    setting: Setting, ranks: tuple[dict[str, Any], ...], loads: Tensor, costs: Costs
) -> dict[str, Any]:
    devices, num_experts = loads.shape[1:]
    tokens_each = ranks[0]["tokens"]
    top_k = int(loads[0, 0].sum()) // tokens_each
    where = Placement.even(num_experts, devices)
    report = straggler(loads, devices, capacity=setting.capacity(), top_k=top_k)
    rows = counts_of_loads(loads, setting.capacity(), where, top_k).rows
    sent = ranks[0]["sent"][setting.name]
    steps = _slowest([rank["steps"][setting.name] for rank in ranks], "step")
    line = {
        "setting": setting.name,
        "dropped": report.dropped_share,
        "busiest": report.device_after,
        "bound": report.bound,
        "seconds": statistics.median(steps),
        "samples": len(steps),
        "error": max(rank["errors"][setting.name] for rank in ranks),
        "wire_live": report.after.busiest_wire,
        "wire_sent": report.after.busiest_wire if sent is None else sent,
        "phases": _phases(setting, ranks),
    }
    if setting == SHARDED:  # all ranks run a slice of every row: the mean, and nothing is dropped
        bound = report.device_before
        return {**line, "busiest": 1.0, "bound": bound, "wire_live": sent, "model": None}
    tokens = torch.full((1, devices), tokens_each)
    modelled = step_seconds(
        rows, where, costs, tokens, None if sent is None else torch.tensor([sent])
    )
    return {**line, "model": float(modelled.total)}


def _slowest(ranks: list[list[dict[str, float]]], name: str) -> list[float]:
    """Sample by sample, of the rank that took longest."""
    return [max(each[name] for each in samples) for samples in zip(*ranks, strict=True)]


def _phases(setting: Setting, ranks: tuple[dict[str, Any], ...]) -> dict[str, float]:
    """Medians: of the slower rank, but waiting of the rank that waits."""
    samples = [rank["phases"][setting.name] for rank in ranks]
    return {phase: statistics.median(_slowest(samples, phase)) for phase in PHASES}


def _cells(line: dict[str, Any]) -> list[str]:
    model = line["model"]
    return [
        line["setting"],
        f"{100 * line['dropped']:.1f}",
        f"{line['busiest']:.2f}",
        f"{1e3 * line['seconds']:.2f}",
        f"{line['speed']:.2f}",
        f"{line['bound']:.2f}",
        "" if model is None else f"{1e3 * model:.2f}",
        "" if model is None else f"{model / line['seconds']:.2f}",
    ]


def _phase_cells(line: dict[str, Any]) -> list[str]:
    times = [f"{1e3 * line['phases'][phase]:.2f}" for phase in PHASES]
    return [line["setting"], *times, str(line["wire_live"]), str(line["wire_sent"])]
