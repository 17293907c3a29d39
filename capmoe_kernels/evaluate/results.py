"""From sums to the numbers of the table, with their errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .loads import Load, ratio, total
from .measure import Run
from .settings import Setting


@dataclass(frozen=True)
class LoadSummary:
    """Loads in units of the mean demand; a bound is before over after. None: division by zero."""

    kept: float | None
    extra: float | None
    orphans: float | None
    expert_before: float | None
    expert_after: float | None
    expert_bound: float | None
    device_before: float | None
    device_after: float | None
    device_bound: float | None


@dataclass(frozen=True)
class LayerResult:
    """One MoE block under one setting."""

    load: LoadSummary
    sorted_before: list[float]
    sorted_after: list[float]


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        setting: what was run; None is Transformers' own implementation, which has no loads.
        bits_per_byte: of all documents together.
        change: against dropless.
        change_error: standard error of ``change`` over documents, paired; None for one document.
        moe_ms: median milliseconds per 1000 tokens, in all MoE blocks together.
        speed: Transformers' time over ours, the median over batches.
        largest_nll_difference: of any token against Transformers, in nats.
        file_nats: loss of each document.
    """

    setting: Setting | None
    load: LoadSummary | None
    layers: list[LayerResult]
    bits_per_byte: float
    change: float
    change_error: float | None
    moe_ms: float
    speed: float
    largest_nll_difference: float
    file_nats: list[float]


@dataclass(frozen=True)
class Evaluation:
    """Everything the run found: Transformers', dropless, and the rest in the order asked for."""

    file_bytes: list[int]

    transformers: Result
    dropless: Result
    results: list[Result]
    num_experts: int
    num_devices: int


def evaluate_runs(
    theirs: Run, ours: Sequence[Run], num_bytes: Sequence[int], num_experts: int, num_devices: int
) -> Evaluation:
    """Numbers from runs, the first of ``ours`` being dropless."""
    sizes = torch.tensor(num_bytes, dtype=torch.float64)
    results = [_result(run, theirs, ours[0], sizes) for run in [theirs, *ours]]
    return Evaluation(
        list(num_bytes), results[0], results[1], results[2:], num_experts, num_devices
    )


def compare(evaluation: Evaluation, result: Result, base: Result) -> tuple[float, float | None]:
    """:func:`paired_change` of any two lines."""
    nats, other, sizes = (
        torch.tensor(values, dtype=torch.float64)
        for values in (result.file_nats, base.file_nats, evaluation.file_bytes)
    )
    return paired_change(nats, other, sizes)


def _result(run: Run, theirs: Run, dropless: Run, sizes: Tensor) -> Result:
    change, error = paired_change(run.nats, dropless.nats, sizes)
    speeds = [a / b for a, b in zip(theirs.milliseconds, run.milliseconds, strict=True)]
    return Result(
        setting=run.setting,
        load=summarize(total(run.layers)) if run.layers else None,
        layers=[_layer(load) for load in run.layers],
        bits_per_byte=float(run.nats.sum() / sizes.sum()) / math.log(2),
        change=change,
        change_error=error,
        moe_ms=statistics.median(run.milliseconds),
        speed=statistics.median(speeds),
        largest_nll_difference=run.largest_nll_difference,
        file_nats=run.nats.tolist(),
    )


def paired_change(nats: Tensor, base: Tensor, sizes: Tensor) -> tuple[float, float | None]:
    """The change in bits per byte, and its standard error over documents.

    The total is a ratio of sums, so the error is that of a ratio estimator: the spread of what each
    document adds beyond its bytes' share. Both runs read the same documents, so it is paired.
    """
    added = (nats - base) / math.log(2)
    change = float(added.sum() / sizes.sum())
    count = len(sizes)
    if count < 2:
        return change, None
    beyond = added - change * sizes
    error = float((beyond.square().sum() * count / (count - 1)).sqrt() / sizes.sum())
    return change, error


def summarize(load: Load) -> LoadSummary:
    """One layer's load, or the total's."""
    return LoadSummary(
        kept=ratio(load.kept, load.asked),
        extra=ratio(load.extra, load.asked),
        orphans=ratio(load.orphans, load.tokens),
        expert_before=ratio(load.expert_before, load.expert_mean),
        expert_after=ratio(load.expert_after, load.expert_mean),
        expert_bound=ratio(load.expert_before, load.expert_after),
        device_before=ratio(load.device_before, load.device_mean),
        device_after=ratio(load.device_after, load.device_mean),
        device_bound=ratio(load.device_before, load.device_after),
    )


def _layer(load: Load) -> LayerResult:
    mean = load.expert_mean or 1.0
    return LayerResult(
        summarize(load),
        (load.sorted_before / mean).tolist(),
        (load.sorted_after / mean).tolist(),
    )
