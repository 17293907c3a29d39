"""The layer beside others, for one data type and shape: every answer is judged, then timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.benchmark.cases import DTYPES
from capmoe_kernels.benchmark.judge import OTHERS_OVER_LOOP, OURS_OVER_LOOP
from capmoe_kernels.benchmark.models import Shape
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
from .cpu_peers_child import in_child
from .cpu_peers_peaks import Peaks
from .cpu_peers_sampling import interleaved

TOKENS = (1, 8, 32, 128, 512, 4096)
COLD_TOKENS = 32  # up to here weights decide, and a model has too many to find them in a cache
Cell = dict[str, Any]


class Plan(NamedTuple):
    dtype: str
    shape: str
    tokens: tuple[int, ...]
    seconds: float  # of samples per cell


def usable(dtype: str) -> tuple[list[str], dict[str, str]]:
    """Which rivals survive eight tokens of this type, and what became of the others."""
    names, reasons = [], {}
    for name, (module, prepare) in rivals.RIVALS.items():
        if not rivals.installed(module):
            reasons[name] = f"{module} is not installed"
            continue
        try:
            in_child(partial(_try, prepare, DTYPES[dtype]), quiet=True)
            names.append(name)
        except RuntimeError as error:
            reasons[name] = str(error).splitlines()[0][:100]
    if rivals.VLLM_AMX in names:
        names.remove(rivals.VLLM_VEC)
        reasons[rivals.VLLM_VEC] = "vLLM takes amx here"
    return names, reasons


def _try(prepare: rivals.Prepare, dtype: torch.dtype) -> None:
    experts = make_experts(TINY, dtype)
    prepare(experts)(Given(*make_inputs(TINY, dtype, 8), experts, TINY.top_k))


def measure(plan: Plan, names: list[str], peaks: Peaks) -> list[Cell]:
    """Wants a process of its own: several packed copies of the weights, which others never free."""
    keep_freed_memory()
    torch.manual_seed(0)
    shape, dtype = SHAPES[plan.shape], DTYPES[plan.dtype]
    experts = make_experts(shape, dtype)
    runs, chill = prepare(experts, names), Chill(dtype, names, peaks)
    x, logits = make_inputs(shape, dtype, max(plan.tokens))
    expected, cells = None, []
    for tokens in sorted(plan.tokens, reverse=True):
        given = Given(x[:tokens], logits[:tokens], experts, shape.top_k)
        expected = truth_of(given) if expected is None else expected
        cells.append(_cell(plan, shape, given, runs, Judge(given, expected), chill))
    return cells[::-1]


def prepare(experts: cm.Experts, names: list[str]) -> dict[str, rivals.Run]:
    runs = {rivals.OURS: rivals.ours(experts), rivals.LOOP: rivals.loop(experts)}
    return runs | {name: rivals.RIVALS[name][1](experts) for name in names}


class Chill:
    """Caches as the layer before would leave them: none of the weights, but the code that runs."""

    def __init__(self, dtype: torch.dtype, names: list[str], peaks: Peaks) -> None:
        self.dtype, self.peaks, self.reads = dtype, peaks, list[float]()
        self.experts = make_experts(TINY, dtype)
        self.runs = prepare(self.experts, names)

    def of(self, tokens: int) -> Callable[[str], None]:
        self.reads.clear()
        given = Given(*make_inputs(TINY, self.dtype, tokens), self.experts, TINY.top_k)

        def before(name: str) -> None:
            self.reads.append(self.peaks.read())
            self.runs[name](given)

        return before


def _cell(
    plan: Plan,
    shape: Shape,
    given: Given,
    runs: dict[str, rivals.Run],
    judge: Judge,
    chill: Chill,
) -> Cell:
    wrong, errors, calls = judged(runs, given, judge)
    cold = given.tokens <= COLD_TOKENS
    before = chill.of(given.tokens) if cold else None
    times, rounds = interleaved(calls, plan.seconds, before=before)
    return {
        "dtype": plan.dtype,
        "shape": plan.shape,
        "tokens": given.tokens,
        "ms": {name: 1e3 * taken for name, taken in times.items()},
        "wrong": wrong,
        "errors": errors,
        "rounds": rounds,
        "flops": 6 * given.ids.numel() * shape.hidden * shape.intermediate,
        "active_bytes": given.active_experts * given.down[0].numel() * 3 * given.x.element_size(),
        "read": statistics.median(chill.reads) if cold else None,
    }


def judged(
    runs: dict[str, rivals.Run], given: Given, judge: Judge
) -> tuple[dict[str, str], dict[str, float], dict[str, Callable[[], Tensor]]]:
    """What is wrong with whom, everyone's error, and the calls of those who are right."""
    wrong: dict[str, str] = {}
    errors: dict[str, float] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, run in runs.items():
        try:
            out = run(given)
        except Exception as error:
            wrong[name] = str(error).splitlines()[0][:100]
            continue
        errors[name] = judge.error(out)
        factor = OURS_OVER_LOOP if name == rivals.OURS else OTHERS_OVER_LOOP
        complaint = judge.complaint(out, factor)
        if complaint is None:
            calls[name] = partial(run, given)
        else:
            wrong[name] = complaint
    return wrong, errors, calls
