"""The picture of ``capmoe calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..evaluate.plot import STYLES, tidy
from .layers import LayerRow, layer_rows
from .run import Calibration

_BEFORE, _AFTER = "#BBBBBB", "#0072B2"


def draw_calibration(calibration: Calibration, path: Path) -> None:
    """Write the picture; the format follows the suffix.

    Left: what each layer's factors cost alone, the one found marked. Middle: the factors. Right:
    the busiest load of each layer before and after.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"Capacity factors of {calibration.source} for a loss of at most"
        f" {100 * calibration.request.max_loss:g} %",
        fontsize=13,
    )
    left, middle, right = figure.subplots(1, 3)
    rows = layer_rows(calibration)
    _draw_curves(left, calibration)
    _draw_factors(middle, calibration, rows)
    _draw_loads(right, calibration, rows)
    figure.savefig(path)


def _draw_curves(axis: Any, calibration: Calibration) -> None:
    found = calibration.found
    few = len(found.curves) <= len(STYLES)
    for layer, curve in enumerate(found.curves):
        color, marker, line = STYLES[layer % len(STYLES)]
        measured = [(each.factor, 100 * each.loss) for each in curve if each.factor is not None]
        if not measured:
            continue
        axis.plot(
            *zip(*measured, strict=True),
            color=color if few else "#0072B2",
            marker=marker if few else None,
            linestyle=line if few else "-",
            alpha=1 if few else 0.4,
            markersize=4,
            label=f"layer {layer + 1}" if few else None,
        )
    axis.axhline(100 * calibration.request.max_loss, color="black", linewidth=1, linestyle=":")
    axis.invert_xaxis()
    axis.set_title("Loss of each layer alone (dotted: the bound)", fontsize=11)
    axis.set_xlabel("capacity factor (tighter to the right)", fontsize=10)
    axis.set_ylabel("bits per byte, % more than dropless", fontsize=10)
    if few:
        axis.legend(frameon=False, fontsize=9)
    tidy(axis)


def _draw_factors(axis: Any, calibration: Calibration, rows: list[LayerRow]) -> None:
    """A bar for every layer with a factor; those without one are dropless."""
    numbers = range(1, len(rows) + 1)
    bounded = [row.factor if row.factor is not None else 0.0 for row in rows]
    axis.bar(numbers, bounded, color=_AFTER, label="found (none: dropless)")
    uniform = calibration.found.uniform.proven
    if uniform is not None and uniform.candidate.factors[0] is not None:
        factor = uniform.candidate.factors[0]
        axis.axhline(factor, color="#D55E00", linestyle="--", label=f"one for all: {factor:g}")
    axis.margins(y=0.25)  # room for the legend
    axis.set_title("Capacity factors that validation confirms", fontsize=11)
    axis.set_xlabel("layer", fontsize=10)
    axis.set_ylabel("capacity factor", fontsize=10)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=9)
    tidy(axis)


def _draw_loads(axis: Any, calibration: Calibration, rows: list[LayerRow]) -> None:
    devices = calibration.request.devices
    numbers = range(1, len(rows) + 1)
    before, after = (
        [getattr(row, when) / (row.mean or 1.0) for row in rows] for when in ("before", "after")
    )
    axis.bar(numbers, before, color=_BEFORE, label="before")
    axis.bar(numbers, after, color=_AFTER, width=0.5, label="after")
    what = "expert" if devices is None else f"of {devices} devices"
    axis.margins(y=0.15)
    axis.set_title(f"Busiest {what}, validation text", fontsize=11)
    axis.set_xlabel("layer", fontsize=10)
    axis.set_ylabel("load / mean asked for", fontsize=10)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=9)
    tidy(axis)
