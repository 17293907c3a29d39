"""The picture of ``capmoe bench``."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

from ..evaluate.plot import STYLES, tidy
from .contenders import ALL, LOOP
from .results import Cell
from .run import Found
from .table import heading

_TIME, _WORK = "#0072B2", "#BBBBBB"


def draw(found: Found, path: Path) -> None:
    """Write the picture; the format follows the suffix.

    Left: speed beside the loop against the number of tokens. Right: at the most tokens, time and
    work beside those of the loop, so that what a capacity saves is seen as both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(heading(found), fontsize=13)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_speeds(left, found)
    _draw_work(right, found.cells[-1])
    figure.legend(
        *left.get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="outside lower center",
    )
    figure.savefig(path)


def _draw_speeds(axis: Any, found: Found) -> None:
    axis.axhline(1.0, color="black", linewidth=1.2, label="loop of F.linear")
    lines = _speeds(found.cells)
    for (name, speeds), (color, marker, line) in zip(lines.items(), cycle(STYLES), strict=False):
        tokens, values = zip(*speeds, strict=True)
        axis.plot(tokens, values, color=color, marker=marker, linestyle=line, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    ticks = [cell.tokens for cell in found.cells]
    axis.set_xticks(ticks, [f"{tokens:,}" for tokens in ticks])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axis.set_title("Speed beside the loop of F.linear (higher is better)", fontsize=11)
    axis.set_xlabel("tokens of a call", fontsize=10)
    tidy(axis)


def _speeds(cells: list[Cell]) -> dict[str, list[tuple[int, float]]]:
    """(tokens, speed) by name, of all but the loop, which is 1."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for cell in cells:
        for result in cell.results:
            speed = cell.speed(result)
            if speed is not None and result.key != LOOP:
                lines.setdefault(result.name, []).append((cell.tokens, speed))
    return lines


def _draw_work(axis: Any, cell: Cell) -> None:
    """Without those that compute every expert: their bars would leave no room for the others."""
    timed = [each for each in cell.results if each.median is not None and each.key != ALL][::-1]
    times = [1 / (cell.speed(result) or math.nan) for result in timed]
    places = range(len(timed))
    work = [result.work or 0.0 for result in timed]
    axis.barh([y + 0.2 for y in places], times, 0.4, color=_TIME, label="time")
    axis.barh([y - 0.2 for y in places], work, 0.4, color=_WORK, label="multiplications")
    for y, result in zip(places, timed, strict=True):
        text = f" {1e3 * (result.median or 0.0):.3g} ms"
        axis.text(times[y], y + 0.2, text, va="center", fontsize=8)
    axis.set_yticks(list(places), [result.name for result in timed], fontsize=9)
    axis.set_title(f"{cell.tokens:,} tokens: time and work, of the loop's", fontsize=11)
    axis.margins(x=0.15)
    tidy(axis)
    axis.grid(visible=False, axis="y")
    axis.legend(frameon=False, fontsize=9, loc="lower right")
