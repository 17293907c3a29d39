"""One rank of ``bench.expert_parallel``: its core, its layers, its times."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.benchmark.timing import keep_freed_memory
from capmoe_kernels.distributed import Costs, calibrate, step_seconds

from .expert_parallel_cases import DROPLESS, SETTINGS, Case, Setting, load_case, make_cases
from .expert_parallel_layers import Layer, expected, make_layer

_ROUNDS_AT_LEAST = 3
# Rows that a rank sends to each other, for the costs of the wire.
_WIRE_ROWS = (1, 64, 512, 4096)


def run_rank(rank: int, folder: str, seconds: float, small: bool) -> None:
    """Entry point of the process: from ``folder``/shipped.pt to ``folder``/rank{n}.pt."""
    real = load_case(f"{folder}/shipped.pt")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    # Ranks on one machine need no name of it, which may not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=real.num_ranks)
    try:
        with torch.inference_mode():
            found = [_case(case, rank, seconds) for case in make_cases(real, small)]
        torch.save(found, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def _case(case: Case, rank: int, seconds: float) -> dict[str, Any]:
    costs = _costs(case, rank, seconds)
    layers = {setting: make_layer(case, setting, rank) for setting in SETTINGS}
    errors = {setting.name: _check(case, setting, layers[setting], rank) for setting in SETTINGS}
    steps = _in_turn({s.name: _timed(layer.step) for s, layer in layers.items()}, seconds)
    parts = {setting.name: layer.phases for setting, layer in layers.items()}
    return {
        "case": case.name,
        "tokens": case.hidden_states.shape[1],
        "loads": _loads(case, rank),
        "costs": asdict(costs),
        "errors": errors,
        "steps": steps,
        "phases": _in_turn(parts, seconds / 2),
        "sent": {setting.name: layer.sent for setting, layer in layers.items()},
    }


def _loads(case: Case, rank: int) -> list[int]:
    """[E]: pairs that the rank's top-k asks for."""
    loads: list[int] = cm.route(case.router_logits[rank], case.gating).demand_per_expert.tolist()
    return loads


def _check(case: Case, setting: Setting, layer: Layer, rank: int) -> float:
    """The largest error, relative to the largest output; also warms up.

    bfloat16 rounds each expert's output, MoEShard each part of it, to a 256th.
    """
    want, got = expected(case, setting, rank), layer.step()
    error = float((got.float() - want.float()).abs().max() / want.float().abs().max())
    if not error <= 0.02:
        raise SystemExit(f"{case.name}, {setting.name}: wrong answer, error {error:.3g}")
    return error


def _timed(step: Callable[[], Tensor]) -> Callable[[], dict[str, float]]:
    def timed() -> dict[str, float]:
        dist.barrier()
        start = time.perf_counter()
        step()
        return {"step": time.perf_counter() - start}

    return timed


def _in_turn(
    calls: dict[str, Callable[[], dict[str, float]]], seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Samples of every call, in turn, for so long; all ranks take as many."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    end, rounds = time.monotonic() + seconds, 0
    while rounds < _ROUNDS_AT_LEAST or _go_on(time.monotonic() < end):
        for name, call in calls.items():
            dist.barrier()
            samples[name].append(call())
        rounds += 1
    return samples


def _go_on(mine: bool) -> bool:
    """What rank 0 says."""
    word = torch.tensor([int(mine)])
    dist.broadcast(word, src=0)
    return bool(word.item())


def _costs(case: Case, rank: int, seconds: float) -> Costs:
    """Calibrated on this rank's core, while the other rank does the same on its own.

    What neither experts nor wire explain (gate, copies, bookkeeping) comes from even loads of few
    and of all tokens, dropless: the uneven loads that are predicted are not among them.
    """
    known = calibrate(case.own_experts(rank), seconds=seconds / 4).costs
    fixed, row = _wire(case, seconds / 4)
    known = replace(known, wire_fixed=2 * fixed, wire_row=row)
    tokens_each = case.hidden_states.shape[1]
    sizes = max(1, tokens_each // 32), tokens_each
    even = {str(tokens): _even(case, tokens) for tokens in sizes}
    layers = {tokens: make_layer(each, DROPLESS, rank) for tokens, each in even.items()}
    taken = _in_turn({t: _timed(layer.step) for t, layer in layers.items()}, seconds / 4)
    few, all_ = (
        statistics.median(each["step"] for each in taken[tokens]) - _modelled(even[tokens], known)
        for tokens in even
    )
    token = max(0.0, (all_ - few) / (sizes[1] - sizes[0]))
    return replace(known, token=token, fixed=known.fixed + max(0.0, few - token * sizes[0]))


def _even(case: Case, tokens: int) -> Case:
    """The case's experts, each asked for as often as any other."""
    ranks, _, num_experts = case.router_logits.shape
    top_k = case.gating.top_k
    pairs = torch.arange(ranks * tokens * top_k).view(ranks, tokens, top_k)
    logits = torch.zeros(ranks, tokens, num_experts).scatter_(2, pairs % num_experts, 8.0)
    return replace(case, hidden_states=case.hidden_states[:, :tokens], router_logits=logits)


def _modelled(case: Case, costs: Costs) -> float:
    loads = torch.tensor([_loads(case, rank) for rank in range(case.num_ranks)])[None]
    return float(step_seconds(loads, case.placement, costs).total)


def _wire(case: Case, seconds: float) -> tuple[float, float]:
    """Seconds of one exchange, and per row that a rank sends, from exchanges of several sizes."""
    hidden, dtype = case.hidden_states.shape[2], case.hidden_states.dtype
    calls = {}
    for rows in _WIRE_ROWS:
        payload = torch.zeros(case.num_ranks * rows, hidden, dtype=dtype)
        received = torch.empty_like(payload)

        def exchange(received: Tensor = received, payload: Tensor = payload) -> Tensor:
            dist.all_to_all_single(received, payload)
            return received

        exchange()
        calls[str(rows)] = _timed(exchange)
    samples = _in_turn(calls, seconds)
    taken = [statistics.median(each["step"] for each in samples[str(rows)]) for rows in _WIRE_ROWS]
    sizes = torch.tensor([(case.num_ranks - 1) * rows for rows in _WIRE_ROWS], dtype=torch.float64)
    times = torch.tensor(taken, dtype=torch.float64)
    terms = torch.stack([torch.ones_like(sizes), sizes], 1) / times[:, None]
    fixed, row = torch.linalg.lstsq(terms, torch.ones(len(taken), 1).double()).solution[:, 0]
    return max(0.0, float(fixed)), max(0.0, float(row))
