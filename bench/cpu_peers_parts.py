"""What else the CPU layer is held to: capacity that pays, threads, what a call costs, memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import capmoe_kernels as cm
from capmoe_kernels.benchmark.cases import DTYPES
from capmoe_kernels.benchmark.judge import OURS_OVER_LOOP
from capmoe_kernels.benchmark.timing import keep_freed_memory

from . import cpu_peers_rivals as rivals
from .cpu_peers_cases import (
    SHAPES,
    TINY,
    Given,
    Judge,
    make_experts,
    make_inputs,
    truth_of,
)
from .cpu_peers_layer import judged, prepare
from .cpu_peers_sampling import interleaved

CALL_SECONDS = 0.02  # a sample is as many calls as take this
SKEW, FACTOR = 1.0, 1.0
DROPLESS, TOKEN_DROP, EXPANDED_DROP = "dropless", "Token Drop", "Expanded Drop"
SLACK_BYTES = 64e6
Result = dict[str, Any]


def capacity(seconds: float, name: str = "olmoe", tokens: int = 4096) -> Result:
    """One layer, its popular experts crowded: dropless, dropping, and filling what is free."""
    keep_freed_memory()
    torch.manual_seed(0)
    shape = SHAPES[name]
    experts = make_experts(shape, torch.bfloat16)
    run = rivals.ours(experts)
    x = torch.randn(tokens, shape.hidden).bfloat16()
    logits = torch.randn(tokens, shape.experts) + SKEW * torch.randn(shape.experts)
    policies = {
        DROPLESS: cm.Capacity(),
        TOKEN_DROP: cm.Capacity(factor=FACTOR),
        EXPANDED_DROP: cm.Capacity(factor=FACTOR, expand="rank", extra=shape.top_k),
    }
    calls: dict[str, Callable[[], Any]] = {}
    kept: dict[str, float] = {}
    for policy_name, policy in policies.items():
        given = Given(x, logits, experts, shape.top_k, policy)
        complaint = Judge(given, truth_of(given)).complaint(run(given), OURS_OVER_LOOP)
        if complaint is not None:
            raise RuntimeError(f"{policy_name}: {complaint}")
        calls[policy_name] = partial(run, given)
        pairs = int(given.case.routing.tokens_per_expert.sum())
        kept[policy_name] = pairs / (tokens * shape.top_k)
    times, rounds = interleaved(calls, seconds)
    ms = {policy_name: 1e3 * taken for policy_name, taken in times.items()}
    return {"shape": name, "tokens": tokens, "ms": ms, "kept": kept, "rounds": rounds}


def threads(seconds: float, shapes: list[str], most_tokens: int = 4096) -> list[Result]:
    """The best wall time of one thread and of two: means little while others use the cores."""
    if (os.cpu_count() or 1) < 2:
        return []
    keep_freed_memory()
    torch.manual_seed(0)
    results = []
    for name in shapes:
        shape = SHAPES[name]
        experts = make_experts(shape, torch.bfloat16)
        run = rivals.ours(experts)
        for tokens in (32, most_tokens):
            given = Given(*make_inputs(shape, torch.bfloat16, tokens), experts, shape.top_k)
            best = _best_wall(partial(run, given), seconds)
            results.append({"shape": name, "tokens": tokens, "ms": best})
    return results


def _best_wall(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    best = {"one": float("inf"), "two": float("inf")}
    rounds, end = 0, time.monotonic() + seconds
    while rounds < 4 or time.monotonic() < end:
        for count, name in enumerate(best, start=1):
            torch.set_num_threads(count)
            if rounds == 0:
                call()
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
        rounds += 1
    return best


def call_cost(seconds: float, names: list[str], dtype: str = "bf16") -> Result:
    """Microseconds of CPU time of a layer so small that little of it is arithmetic."""
    keep_freed_memory()
    torch.manual_seed(0)
    experts = make_experts(TINY, DTYPES[dtype])
    given = Given(*make_inputs(TINY, DTYPES[dtype], 1), experts, TINY.top_k)
    wrong, _, calls = judged(prepare(experts, names), given, Judge(given, truth_of(given)))
    batches = {name: _batch(call) for name, call in calls.items()}
    times, rounds = interleaved({n: batch for n, (batch, _) in batches.items()}, seconds, least=5)
    us = {name: 1e6 * taken / batches[name][1] for name, taken in times.items()}
    return {"us": us, "wrong": wrong, "rounds": rounds}


def _batch(call: Callable[[], Any]) -> tuple[Callable[[], None], int]:
    """As many calls as the clock can time, and how many they are."""
    call()
    start = time.process_time()
    for _ in range(10):
        call()
    once = max((time.process_time() - start) / 10, 1e-6)
    times = max(1, round(CALL_SECONDS / once))

    def run() -> None:
        for _ in range(times):
            call()

    return run, times


def memory(name: str = "olmoe", tokens: int = 4096) -> Result | None:
    """What the process holds at most during ``pack`` and during ``moe``, beyond before."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    torch.manual_seed(0)
    shape, dtype = SHAPES[name], torch.bfloat16
    experts = make_experts(shape, dtype)
    x, logits = make_inputs(shape, dtype, tokens)
    gating = cm.Gating(top_k=shape.top_k)
    pack = getattr(experts, "pack", None)
    packed, pack_peak = experts, 0
    if pack is not None:
        packed, pack_peak, kept = _peak(pack)
        pack_peak -= kept
    cm.moe(x[:32], logits[:32], packed, gating)
    _, moe_peak, _ = _peak(lambda: cm.moe(x, logits, packed, gating))
    rows = tokens * shape.top_k
    allowed = rows * (4 * shape.intermediate + shape.hidden) + SLACK_BYTES
    expert = 3 * shape.hidden * shape.intermediate * dtype.itemsize
    return {
        "shape": name,
        "tokens": tokens,
        "moe": moe_peak,
        "moe_allowed": allowed,
        "pack_beyond_result": pack_peak,
        "pack_allowed": expert + SLACK_BYTES,
    }


def _peak(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """The result, the bytes held at most beyond before, and those still held after."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    result = call()
    return result, _status("VmHWM") - before, _status("VmRSS") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, field
    return 1024 * int(found[1])
