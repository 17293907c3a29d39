"""What a capacity would gain on 8 to 256 devices: a simulation. ``python -m bench.ep_simulation``.

Nothing here ran on several devices. Loads are drawn (log-normal popularity of experts, the same on
all source ranks, fresh in each step); each source rank bounds its own; a cost model turns rows into
seconds. Two sets of costs: this machine's, from a short measurement scaled by operations and bytes
to the models' sizes, exchange not counted; and an H100's, from the times in docs/gpu.md, whose
exchange is rows over ``--wire-gbs``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import NamedTuple

import torch
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.distributed import (
    Calibration,
    Costs,
    Placement,
    StragglerReport,
    calibrate,
    simulate_loads,
    step_seconds,
    straggler,
)
from capmoe_kernels.distributed.straggler_counts import counts_of_loads


class Model(NamedTuple):
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    devices: tuple[int, ...]  # an expert on each at most


MODELS = {
    "OLMoE": Model(2048, 1024, 64, 8, (8, 32, 64)),
    "Mixtral": Model(4096, 14336, 8, 2, (8,)),
    "Qwen3-30B": Model(2048, 768, 128, 8, (8, 32, 128)),
    "DeepSeek-V3": Model(7168, 2048, 256, 8, (8, 32, 128, 256)),
}
# arXiv 2503.05066, figure 4, read off: one MoE layer on H20s. Token Drop, Expanded Drop.
PAPER = {
    "OLMoE": (Model(2048, 1024, 64, 8, (8,)), (1.21, 1.30, 1.46), (1.16, 1.25, 1.36)),
    "DeepSeek-V2-Lite": (Model(2048, 1408, 64, 6, (8,)), (1.12, 1.23, 1.37), (1.09, 1.15, 1.31)),
    "Qwen1.5-MoE": (Model(2048, 1408, 60, 4, (6,)), (1.10, 1.13, 1.18), (1.03, 1.08, 1.13)),
    "Mixtral": (Model(4096, 14336, 8, 2, (8,)), (1.44, 1.89, 2.55), (1.43, 1.86, 2.51)),
}
FACTORS = (2.0, 1.5, 1.0)
SKEWS = (0.5, 1.0, 1.5)
# OLMoE's layer on an H100 80GB (docs/gpu.md, bf16): T = 64 reads 64 experts' weights in 270 us;
# T = 16384 runs 131072 rows in 3084 us, in tiles of 128 and half a tile more per expert; gate,
# select and combine take 10.3 us at T = 1, and with dispatch 570 us at T = 16384.
H100 = Costs(
    tile=3084e-6 / (131072 / 128 + 64 / 2),
    rows_per_tile=128,
    weights=270e-6 / 64,
    fixed=10.3e-6,
    token=(570e-6 - 10.3e-6) / 16384,
)
_OLMOE = MODELS["OLMoE"]
_PROBE = Model(512, 1024, 4, 1, ())


def probe(seconds: float) -> Calibration:
    """This machine's costs, of small experts."""
    up = torch.randn(_PROBE.experts, 2 * _PROBE.intermediate, _PROBE.hidden) / 16
    down = torch.randn(_PROBE.experts, _PROBE.hidden, _PROBE.intermediate) / 32
    return calibrate(cm.Experts(up.bfloat16(), down.bfloat16()).pack(), seconds=seconds)


def costs_for(model: Model, costs: Costs, of: Model) -> Costs:
    """``costs``, known of ``of``'s experts, for ``model``'s."""
    flops = model.hidden * model.intermediate / (of.hidden * of.intermediate)
    return costs.scaled(flops=flops, weight_bytes=flops, row_bytes=model.hidden / of.hidden)


def capacity(factor: float, expand: str) -> cm.Capacity:
    if expand == "local":  # each rank's own experts take the place of this range
        return cm.Capacity(factor=factor, expand="local", local_experts=(0, 0))
    return cm.Capacity(factor=factor)


class Cell(NamedTuple):
    """One capacity on one set of loads: the report, and the modelled speed-ups."""

    report: StragglerReport
    speeds: list[float]


def cell(model: Model, loads: Tensor, factor: float, expand: str, costs: list[Costs]) -> Cell:
    devices, bound = loads.shape[1], capacity(factor, expand)
    where = Placement.even(model.experts, devices)
    report = straggler(loads, devices, capacity=bound, top_k=model.top_k)
    rows = counts_of_loads(loads, bound, where, model.top_k).rows
    tokens = loads.sum(2) // model.top_k
    speeds = [
        float(
            step_seconds(loads, where, each, tokens).total.sum()
            / step_seconds(rows, where, each, tokens).total.sum()
        )
        for each in costs
    ]
    return Cell(report, speeds)


def draw(model: Model, devices: int, skew: float, arguments: argparse.Namespace) -> Tensor:
    return simulate_loads(
        model.experts,
        model.top_k,
        devices,
        arguments.tokens,
        skew,
        arguments.draws,
        arguments.seed,
    )


def paper_rows(arguments: argparse.Namespace) -> list[list[str]]:
    rows = [["model", "devices", "skew", "Token Drop at 2 / 1.5 / 1", "Expanded Drop"]]
    for name, (model, dropped, expanded) in PAPER.items():
        (devices,) = model.devices
        rows.append([name, str(devices), "paper", _numbers(dropped), _numbers(expanded)])
        for skew in arguments.skew:
            loads = draw(model, devices, skew, arguments)
            bounds = [
                [cell(model, loads, factor, expand, []).report.bound or 1.0 for factor in FACTORS]
                for expand in ("none", "local")
            ]
            rows.append(["", "", f"{skew:g}", *map(_numbers, bounds)])
    return rows


def scale_rows(arguments: argparse.Namespace, here: Costs) -> list[list[str]]:
    methods = [
        f"{method}: {what}"
        for method in ("Token Drop", "Expanded Drop")
        for what in ("bound", "this CPU", "H100")
    ]
    header = ["model", "devices", "skew", "busiest expert", "busiest device"]
    rows = [[*header, "dropped %", *methods]]
    for name in arguments.models:
        model = MODELS[name]
        wire_row = model.hidden * torch.bfloat16.itemsize / (1e9 * arguments.wire_gbs)
        gpu = replace(costs_for(model, H100, _OLMOE), wire_row=wire_row)
        costs = [costs_for(model, here, _PROBE), gpu]
        for devices in model.devices:
            for skew in arguments.skew:
                loads = draw(model, devices, skew, arguments)
                rows.append([name, str(devices), f"{skew:g}", *_cells(model, loads, costs)])
    return rows


def _cells(model: Model, loads: Tensor, costs: list[Costs]) -> list[str]:
    dropped, expanded = (
        [cell(model, loads, factor, expand, costs) for factor in FACTORS]
        for expand in ("none", "local")
    )
    report = dropped[0].report
    out = [f"{report.expert_before:.1f}", f"{report.device_before:.2f}"]
    out.append(" / ".join(f"{100 * each.report.dropped_share:.0f}" for each in dropped))
    for cells in (dropped, expanded):
        out.append(_numbers([each.report.bound or 1.0 for each in cells]))
        out += [_numbers([each.speeds[i] for each in cells]) for i in range(len(costs))]
    return out


def _numbers(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)


def print_markdown(title: str, rows: Sequence[Sequence[str]]) -> None:
    """The first row is the header; numbers stand on the right."""
    print(f"\n{title}\n")
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    for line in lines:
        print(f"| {' | '.join(line)} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--skew", nargs="+", type=float, default=list(SKEWS))
    parser.add_argument("--tokens", type=int, default=1024, help="of each device")
    parser.add_argument("--draws", type=int, default=8, help="steps, each of fresh popularity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure this machine")
    parser.add_argument(
        "--wire-gbs", type=float, default=450.0, help="GB/s one way (NVLink 4: 450)"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    here = probe(arguments.seconds)
    print_markdown(
        "SIMULATION: bounds beside the paper's measured layer speed-ups (its figure 4)",
        paper_rows(arguments),
    )
    print_markdown(
        "SIMULATION: bounds and modelled speed-ups at capacity factor 2 / 1.5 / 1",
        scale_rows(arguments, here.costs),
    )
    row, expert = 1e6 * here.costs.tile, 1e6 * here.costs.expert
    print(
        f"\nSIMULATION, {datetime.now(timezone.utc):%Y-%m-%d}: {arguments.tokens} tokens a device,"
        f" {arguments.draws} draws, seed {arguments.seed}. This CPU: {row:.3f} us a row,"
        f" {expert:.1f} us an expert of H {_PROBE.hidden}, F {_PROBE.intermediate} (fitted within"
        f" {100 * here.worst_error:.0f} %). H100: docs/gpu.md, wire {arguments.wire_gbs:g} GB/s."
    )


if __name__ == "__main__":
    main()
