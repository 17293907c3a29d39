"""From a request to the lines of ``capmoe straggler`` and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..capacity import Capacity
from ..demo.corpus import held_out_files
from ..distributed import StragglerReport, straggler
from .checkpoint import load
from .errors import UsageError
from .recording import record
from .report import about_this_run, write_json
from .run import check_output, choose_window, use_threads
from .text import make_batches, read_texts, tokenize
from .trace import Trace, load_trace, save_trace


@dataclass(frozen=True)
class StragglerRequest:
    """What to count, and where to write it.

    Attributes:
        source: a checkpoint folder or a trace file; None: the model that ships.
        texts: for a checkpoint; none: the text that no training of the shipped model has seen.
        devices: numbers of devices to place the experts on.
        factors, expands: of the capacities.
        max_bytes, window, batch_tokens, device, threads: see :class:`~.run.Request`.
        json, plot, save_trace: files to write, or None.
    """

    source: Path | None
    texts: Sequence[Path]
    devices: Sequence[int]
    factors: Sequence[float]
    expands: Sequence[str]
    max_bytes: int | None = None
    window: int | None = None
    batch_tokens: int = 4096
    device: str = "cpu"
    threads: int | None = None
    json: Path | None = None
    plot: Path | None = None
    save_trace: Path | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table; ``layers`` has a report for each, ``report`` is of all steps."""

    devices: int
    factor: float
    expand: str
    report: StragglerReport
    layers: list[StragglerReport]


@dataclass(frozen=True, eq=False)
class Found:
    """Everything the command shows."""

    trace: Trace
    lines: list[Line]


def run_straggler(request: StragglerRequest) -> Found:
    """Count and write the files asked for. What can be refused is, before the work.

    Raises:
        UsageError: in one line, what the user has to change.
    """
    check_output("--json", request.json)
    check_output("--plot", request.plot)
    check_output("--save-trace", request.save_trace)
    trace = _trace(request)
    if request.save_trace is not None:
        save_trace(trace, request.save_trace)
    try:
        lines = [
            _line(trace, loads, devices, factor, expand)
            for devices in request.devices
            for loads in [trace.loads(devices)]
            for expand in request.expands
            for factor in request.factors
        ]
    except ValueError as error:
        raise UsageError(f"{trace.source}: {error}") from None
    found = Found(trace, lines)
    if request.json is not None:
        write_json(straggler_json(found), request.json)
    if request.plot is not None:
        from .straggler_plot import draw_stragglers

        draw_stragglers(found, request.plot)
    return found


def _trace(request: StragglerRequest) -> Trace:
    if request.source is None:
        with as_file(files("capmoe_kernels.demo") / "model") as model:
            return replace(_recorded(model, request), source="the model that ships")
    if request.source.is_dir():
        return _recorded(request.source, request)
    if not request.source.exists():
        raise UsageError(f"{request.source}: no such checkpoint folder or trace file")
    return load_trace(request.source)


def _recorded(model: Path, request: StragglerRequest) -> Trace:
    paths = request.texts or [path for path in held_out_files() if path.is_file()]
    texts = read_texts(paths, request.max_bytes)
    checkpoint = load(model, request.device)
    window = choose_window(checkpoint, request.window)
    batches = make_batches(tokenize(texts, checkpoint.tokenizer), window, request.batch_tokens)
    with use_threads(request.threads):
        return record(checkpoint, batches)


def _line(trace: Trace, loads: Tensor, devices: int, factor: float, expand: str) -> Line:
    capacity = Capacity(factor=factor)
    if expand == "local":  # every rank's own experts take the place of this range
        capacity = Capacity(factor=factor, expand="local", local_experts=(0, 0))

    def report(some: Tensor) -> StragglerReport:
        return straggler(
            some,
            devices,
            capacity=capacity,
            top_k=trace.top_k,
            hidden_size=trace.hidden_size,
            dtype=trace.dtype or torch.bfloat16,
        )

    layers = [report(layer) for layer in loads.chunk(len(trace.topk_ids))]
    return Line(devices, factor, expand, report(loads), layers)


def straggler_json(found: Found) -> dict[str, Any]:
    """A tree of plain values; loads are rows, summed over steps."""
    trace = found.trace
    return {
        **about_this_run(),
        "source": trace.source,
        "layers": len(trace.topk_ids),
        "steps": len(trace.step_tokens),
        "tokens": sum(trace.step_tokens),
        "num_experts": trace.num_experts,
        "top_k": trace.top_k,
        "hidden_size": trace.hidden_size,
        "results": [
            {
                "devices": line.devices,
                "factor": line.factor,
                "expand": line.expand,
                **_report(line.report),
                "per_layer": [_report(layer) for layer in line.layers],
            }
            for line in found.lines
        ],
    }


def _report(report: StragglerReport) -> dict[str, Any]:
    return {
        **asdict(report),
        "dropped": report.dropped,
        "dropped_share": report.dropped_share,
        "expert_before": report.expert_before,
        "expert_after": report.expert_after,
        "expert_bound": report.expert_bound,
        "device_before": report.device_before,
        "device_after": report.device_after,
        "bound": report.bound,
        "wire_bytes_before": report.wire_bytes(report.before),
        "wire_bytes_after": report.wire_bytes(report.after),
    }
