"""The picture: how even capacity makes the load, and what that costs in quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Evaluation, Result
from .words import main_factor

_MAX_PANELS = 4
# Error bars of different lines stand this far apart, in units of the factor.
_ASIDE = 0.006
_BEFORE, _AFTER, _LINE = "#BBBBBB", "#0072B2", "#D55E00"
# Okabe and Ito's colours, told apart by every kind of colour vision; marks repeat the difference.
STYLES = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "-"),
    ("#009E73", "^", "-"),
    ("#CC79A7", "v", "-"),
    ("#E69F00", "D", "--"),
    ("#56B4E9", "P", "--"),
    ("#000000", "X", "--"),
    ("#999999", "*", "--"),
]
_NAMES = {
    "score": "keep the best (score)",
    "keep_first": "keep the first",
    "keep_last": "keep the last",
    "random": "keep random ones",
}


def draw(evaluation: Evaluation, title: str, path: Path) -> None:
    """Write the picture; the format follows the suffix.

    Left: the load of every expert of up to four layers, busiest first, before and after capacity.
    Right: bits per byte against the capacity factor, with the error of the change to dropless.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    left, right = _halves(figure)
    _draw_loads(left, evaluation)
    _draw_quality(right.subplots(), evaluation)
    figure.savefig(path)


def _halves(figure: Any) -> Any:
    return figure.subfigures(1, 2, width_ratios=(1.15, 1), wspace=0.03)


def _shown(evaluation: Evaluation) -> Result | None:
    """The setting whose load is drawn: dropping alone, at the factor nearest to 1."""
    factor = main_factor(evaluation.results)
    same = [r for r in evaluation.results if r.setting and r.setting.factor == factor]
    plain = [r for r in same if r.setting and r.setting.expand == "none"]
    scored = [r for r in plain if r.setting and r.setting.policy == "score"]
    return next(iter(scored or plain or same), None)


def _panels(num_layers: int) -> list[int]:
    """Up to four layers, first and last among them, evenly between."""
    if num_layers <= _MAX_PANELS:
        return list(range(num_layers))
    step = (num_layers - 1) / (_MAX_PANELS - 1)
    return [round(i * step) for i in range(_MAX_PANELS)]


def _draw_loads(figure: Any, evaluation: Evaluation) -> None:
    shown = _shown(evaluation)
    if shown is None or shown.setting is None:
        return
    chosen = _panels(len(shown.layers))
    rows, columns = (2, 2) if len(chosen) > 2 else (1, len(chosen))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axis in axes[len(chosen) :]:
        axis.set_visible(False)
    factor = shown.setting.factor or 0.0
    for axis, index in zip(axes, chosen, strict=False):
        layer = shown.layers[index]
        edges = [i + 0.5 for i in range(len(layer.sorted_before) + 1)]
        axis.stairs(layer.sorted_before, edges, fill=True, color=_BEFORE, label="asked for")
        axis.stairs(layer.sorted_after, edges, fill=True, color=_AFTER, label="kept")
        axis.axhline(
            factor, color=_LINE, linestyle="--", linewidth=1.3, label=f"capacity factor {factor:g}"
        )
        tidy(axis)
        before, after = layer.load.expert_before or 0.0, layer.load.expert_after or 0.0
        axis.set_title(f"layer {index + 1}: {before:.1f}x → {after:.1f}x the mean", fontsize=10)
    axes[0].legend(frameon=False, fontsize=9, loc="upper right")
    figure.suptitle(f"Expert load before and after capacity ({shown.setting.name})", fontsize=11)
    figure.supxlabel("experts, busiest first", fontsize=10)
    figure.supylabel("pairs per expert / mean asked for", fontsize=10)


def _draw_quality(axis: Any, evaluation: Evaluation) -> None:
    base = evaluation.dropless.bits_per_byte
    axis.axhline(base, color="black", linewidth=1.2, label=f"dropless ({base:.3f})")
    lines = _lines(evaluation.results)
    for index, (name, results) in enumerate(lines.items()):
        color, marker, line = STYLES[index % len(STYLES)]
        aside = _ASIDE * (index - (len(lines) - 1) / 2)
        axis.errorbar(
            [(r.setting.factor or 0.0) + aside for r in results if r.setting],
            [r.bits_per_byte for r in results],
            [r.change_error or 0.0 for r in results],
            color=color,
            marker=marker,
            linestyle=line,
            markersize=5,
            linewidth=1.5,
            capsize=3,
            label=name,
        )
    factors = sorted({r.setting.factor or 0.0 for r in evaluation.results if r.setting})
    axis.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axis.invert_xaxis()
    axis.set_title("Quality against capacity (lower is better)", fontsize=11)
    axis.set_xlabel("capacity factor (tighter to the right)", fontsize=10)
    axis.set_ylabel("bits per byte (bars: s.e. of the change, over files)", fontsize=10)
    tidy(axis)
    axis.legend(frameon=False, fontsize=9)


def _lines(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by method, in words."""
    lines: dict[str, list[Result]] = {}
    for result in results:
        if result.setting is None:
            continue
        name = _NAMES[result.setting.policy]
        if result.setting.expand != "none":
            name += ", expanded (local)"
        lines.setdefault(name, []).append(result)
    return lines


def tidy(axis: Any) -> None:
    """Fewer lines."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
