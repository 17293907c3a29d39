"""What a row and an expert cost on this machine, by a short measurement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import require_int
from ..experts import Experts
from ..layer import dispatch, grouped_mlp
from ..routing import select
from .costs import Costs

ROWS = (1, 4, 16, 64, 256)
# A sample is at least this long: the clock is no finer than some microseconds.
_SAMPLE_SECONDS = 1e-3


class Sample(NamedTuple):
    """``experts`` experts of ``rows`` rows each took ``seconds``."""

    experts: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """Costs, what they were fitted to, and the fit's largest error relative to a sample."""

    costs: Costs
    samples: tuple[Sample, ...]
    worst_error: float


def calibrate(experts: Experts, *, rows: Sequence[int] = ROWS, seconds: float = 1.0) -> Calibration:
    """Measure ``grouped_mlp`` and fit ``fixed``, ``expert`` and ``tile`` (of one row) to it.

    CPU time of this process, medians, samples in turn, so that a shared machine disturbs little;
    with one thread (``torch.set_num_threads(1)``) it is the time a quiet machine takes.

    Args:
        experts: on a CPU, as the layer will use them: :meth:`Experts.pack` them first if it does.
        rows: of each expert, ascending, two numbers or more.
        seconds: to spend, about; every case is measured three times or more.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
    """
    if not isinstance(experts, Experts):
        raise TypeError(f"experts must be capmoe_kernels.Experts, got {type(experts).__name__}")
    if experts.down_proj.device.type != "cpu":
        raise ValueError(f"experts must be on a CPU, got {experts.down_proj.device}")
    for number in rows:
        require_int("rows", number, minimum=1)
    if len(set(rows)) < 2:
        raise ValueError(f"rows must be two different numbers or more, got {tuple(rows)}")
    used = sorted({1, (experts.num_experts + 1) // 2, experts.num_experts})
    cases = [(each, number) for each in used for number in rows]
    calls = [_call(experts, each, number) for each, number in cases]
    taken = _medians(calls, seconds)
    return fit([Sample(*case, time) for case, time in zip(cases, taken, strict=True)])


def fit(samples: Sequence[Sample]) -> Calibration:
    """Costs >= 0 with the least squares of relative errors."""
    experts = torch.tensor([sample.experts for sample in samples], dtype=torch.float64)
    rows = torch.tensor([sample.rows for sample in samples], dtype=torch.float64)
    taken = torch.tensor([sample.seconds for sample in samples], dtype=torch.float64)
    terms = torch.stack([torch.ones_like(rows), experts, experts * rows], 1) / taken[:, None]
    found = _least_squares(terms)
    error = float((terms @ found - 1).abs().max())
    fixed, expert, row = found.tolist()
    return Calibration(Costs(tile=row, expert=expert, fixed=fixed), tuple(samples), error)


def _least_squares(terms: Tensor) -> Tensor:
    """The x >= 0 that brings every row of ``terms @ x`` near 1."""
    left = list(range(terms.shape[1]))
    while True:
        part = torch.linalg.lstsq(terms[:, left], terms.new_ones(terms.shape[0], 1)).solution[:, 0]
        worst = int(part.argmin())
        if part[worst] >= 0 or len(left) == 1:
            return terms.new_zeros(terms.shape[1]).index_copy(0, torch.tensor(left), part)
        del left[worst]


def _call(experts: Experts, used: int, rows: int) -> Callable[[], object]:
    """Run the first ``used`` experts on ``rows`` rows each."""
    ids = torch.arange(used).repeat_interleave(rows)[:, None]
    routing = select(ids, torch.ones(ids.shape), experts.num_experts)
    dtype = experts.down_proj.dtype
    hidden_states = torch.randn(used * rows, experts.hidden_size).to(dtype)
    x = dispatch(hidden_states, routing)
    return lambda: grouped_mlp(x, experts, routing)


def _medians(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Median CPU seconds of each call, samples in turn."""
    with torch.inference_mode():
        repeats = [_repeats(call) for call in calls]
        samples: list[list[float]] = [[] for _ in calls]
        end = time.monotonic() + seconds
        while len(samples[0]) < 3 or time.monotonic() < end:
            for call, repeat, taken in zip(calls, repeats, samples, strict=True):
                taken.append(_sample(call, repeat))
    return [statistics.median(taken) for taken in samples]


def _repeats(call: Callable[[], object]) -> int:
    """Calls that fill a sample; also warms up."""
    call()
    return max(1, round(_SAMPLE_SECONDS / max(_sample(call, 1), 1e-6)))


def _sample(call: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats
