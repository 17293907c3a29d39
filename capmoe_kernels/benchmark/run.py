"""From a request to what ``capmoe bench`` shows, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..evaluate.device import choose_device
from ..evaluate.errors import UsageError
from ..evaluate.report import write_json
from ..evaluate.run import check_output, use_threads
from .cases import DTYPES, Case, make_experts, make_inputs
from .cells import measure_cell
from .cold import COLD_TOKENS, Cold, filler_bytes
from .contenders import Contender, Weights, contenders, has_packed
from .memory import check_fits, needed_bytes
from .request import Request
from .results import Cell
from .timing import Clock, choose_clock


@dataclass(frozen=True)
class Found:
    """Everything the command shows.

    Attributes:
        clock: what was timed.
        load: the system's load average before and after: above 1, others ran as well.
    """

    request: Request
    clock: str
    load: tuple[float, float]
    cells: list[Cell]


def run_bench(request: Request, on_cell: Callable[[int], None] = lambda tokens: None) -> Found:
    """Check, time, and write the files asked for. What can be refused is, before the work.

    ``on_cell`` is told how many tokens come next.

    Raises:
        UsageError: in one line, what the user has to change.
    """
    check_output("--json", request.json)
    check_output("--plot", request.plot)
    if request.json is not None and request.json == request.plot:
        raise UsageError(f"--json and --plot must be two files, got {request.json} for both")
    device = choose_device(request.device)
    packs = has_packed(device)
    copies = packs and not {"packed", "capacity"}.isdisjoint(request.keys)
    check_fits(request.name, _needed(request, copies), device)
    factors = request.factors if "capacity" in request.keys else []
    who = contenders(request.keys, factors, packs)
    load = os.getloadavg()[0]
    with use_threads(request.threads) as threads, torch.inference_mode():
        clock = choose_clock(device, threads)
        cells = _measure(request, who, device, clock, on_cell)
    found = Found(request, clock.name, (load, os.getloadavg()[0]), cells)
    _write(found)
    return found


def _needed(request: Request, copies: bool) -> int:
    most, itemsize = max(request.tokens), DTYPES[request.dtype].itemsize
    needed = needed_bytes(request.layer.shape, most, itemsize, copies)
    return needed + filler_bytes(request.tokens)


def _measure(
    request: Request,
    who: list[Contender],
    device: torch.device,
    clock: Clock,
    on_cell: Callable[[int], None],
) -> list[Cell]:
    (shape, gating), dtype = request.layer, DTYPES[request.dtype]
    random = torch.Generator().manual_seed(request.seed)
    x, logits = make_inputs(shape, dtype, max(request.tokens), request.skew, device, random)
    weights = Weights(make_experts(shape, dtype, device, random))
    ready, absent = weights.prepare(who)
    cold = Cold(who, dtype, device) if filler_bytes(request.tokens) else None
    cells = []
    for tokens in request.tokens:
        on_cell(tokens)
        case = Case(x[:tokens], logits[:tokens], weights.experts, gating)
        before = cold.of(tokens) if cold is not None and tokens <= COLD_TOKENS else None
        cells.append(measure_cell(case, who, ready, absent, clock, request.seconds, before))
    return cells


def _write(found: Found) -> None:
    request = found.request
    if request.json is not None:
        from .report import as_json

        write_json(as_json(found), request.json)
    if request.plot is not None:
        from .plot import draw

        draw(found, request.plot)
