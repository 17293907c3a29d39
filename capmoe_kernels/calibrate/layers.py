"""What the factors found do to each layer, on the validation text."""

from __future__ import annotations

from dataclasses import dataclass

from ..evaluate.loads import Load, ratio, total
from .run import Calibration


@dataclass(frozen=True)
class LayerRow:
    """One layer, or all together.

    Attributes:
        factor: None is dropless.
        before: rows of the busiest expert or device without capacity, summed over calls.
        after: the same with all layers' factors.
        mean: what it would be if all were as busy, without capacity.
        bound: before / after; None where nothing is left.
        kept, extra: pairs of the top-k that are run, and others that are, over those asked for.
        loss_alone: relative, with all other layers dropless, of the sample; None where that was not
            measured.
    """

    factor: float | None
    before: int
    after: int
    mean: float
    bound: float | None
    kept: float | None
    extra: float | None
    loss_alone: float | None


def layer_rows(calibration: Calibration) -> list[LayerRow]:
    """One for every layer."""
    found = calibration.found
    before, after = _loads(calibration)
    return [
        _row(calibration, factor, *loads, _loss_alone(calibration, layer, factor))
        for layer, (factor, loads) in enumerate(
            zip(found.factors, zip(before, after, strict=True), strict=True)
        )
    ]


def total_row(calibration: Calibration) -> LayerRow:
    """All layers as one."""
    before, after = _loads(calibration)
    return _row(calibration, None, total(before), total(after), None)


def _loads(calibration: Calibration) -> tuple[list[Load], list[Load]]:
    """(without capacity, with the factors that were found) of every layer."""
    found = calibration.found
    proven = found.answer.proven
    before = found.validation.loads
    return before, before if proven is None else proven.measured.loads


def _row(
    calibration: Calibration,
    factor: float | None,
    before: Load,
    after: Load,
    loss_alone: float | None,
) -> LayerRow:
    devices = calibration.request.devices
    busiest = calibration.request.method.busiest
    return LayerRow(
        factor=factor,
        before=busiest(before),
        after=busiest(after),
        mean=before.expert_mean if devices is None else before.device_mean,
        bound=ratio(busiest(before), busiest(after)),
        kept=ratio(after.kept, after.asked),
        extra=ratio(after.extra, after.asked),
        loss_alone=loss_alone,
    )


def _loss_alone(calibration: Calibration, layer: int, factor: float | None) -> float | None:
    curve = calibration.found.curves[layer]
    return next((choice.loss for choice in curve if choice.factor == factor), None)
