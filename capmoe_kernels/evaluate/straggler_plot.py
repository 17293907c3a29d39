"""The picture of ``capmoe straggler``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .plot import STYLES, tidy
from .straggler_run import Found, Line
from .straggler_table import METHODS


def draw_stragglers(found: Found, path: Path) -> None:
    """Write the picture; the format follows the suffix.

    Left: the busiest device before and after capacity. Right: the bound against the factor. A
    colour is a number of devices, a dashed line is Expanded Drop.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(f"The straggler effect: {found.trace.source}, devices simulated", fontsize=13)
    left, right = figure.subplots(1, 2)
    groups = _groups(found)
    colors = {devices: STYLES[i % len(STYLES)] for i, devices in enumerate(_devices(found))}
    for (devices, expand), lines in groups.items():
        color, marker, _ = colors[devices]
        style = {"color": color, "marker": marker, "linestyle": "--" if expand != "none" else "-"}
        label = f"{devices} devices, {METHODS[expand]}"
        factors = [line.factor for line in lines]
        left.plot(factors, [_after(line) for line in lines], label=label, **style)
        right.plot(factors, [line.report.bound or float("nan") for line in lines], **style)
    for devices in colors:
        before = next(line.report.device_before for line in found.lines if line.devices == devices)
        if before is not None:
            left.axhline(before, color=colors[devices][0], linewidth=1, linestyle=":")
    _label(left, "Busiest device (dotted: without capacity)", "load / mean asked for", found)
    _label(right, "Bound of the experts' speed-up", "busiest before / after", found)
    left.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _groups(found: Found) -> dict[tuple[int, str], list[Line]]:
    groups: dict[tuple[int, str], list[Line]] = {}
    for line in found.lines:
        groups.setdefault((line.devices, line.expand), []).append(line)
    return groups


def _devices(found: Found) -> list[int]:
    return list(dict.fromkeys(line.devices for line in found.lines))


def _after(line: Line) -> float:
    after = line.report.device_after
    return float("nan") if after is None else after


def _label(axis: Any, title: str, ylabel: str, found: Found) -> None:
    factors = sorted({line.factor for line in found.lines})
    axis.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axis.invert_xaxis()
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("capacity factor (tighter to the right)", fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    tidy(axis)
