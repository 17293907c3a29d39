"""The picture: what is lost, against the factor and against the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capmoe_kernels.evaluate.plot import STYLES, tidy

from .quality_results import Results
from .quality_settings import CONVERTED, OWN, Case, bounded

_LINES: dict[str, dict[str, Any]] = {
    "score": {},
    "random": {"policy": "random"},
    "keep first": {"policy": "keep_first"},
    "keep last": {"policy": "keep_last"},
    "score, Expanded (local)": {"expand": "local"},
    "score, Expanded (next 4)": {"expand": "rank", "extra": 4},
    "score, per device": {"scope": "device"},
}
# Lines that would hide one another stand this far apart, as a part of the factor.
_ASIDE = 0.006


def draw(results: Results, path: Path) -> None:
    """Write the picture; the format follows the suffix.

    Left and middle: the change to dropless by factor, of the model as trained and converted. Right:
    the same as trained against the bound of the busiest device.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5.4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    own, converted, bound = figure.subplots(1, 3, sharey=True)
    _by_factor(own, results, OWN, "As trained")
    _by_factor(converted, results, CONVERTED, "Converted to weights that sum to one")
    _by_bound(bound, results)
    own.set_ylabel("bits per byte more than dropless", fontsize=10)
    handles, labels = own.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"What capacity costs the demo model ({len(results.num_bytes)} held-out files, bars: 95 %)",
        fontsize=13,
    )
    figure.savefig(path)


def _measured(results: Results, like: Case, fields: dict[str, Any]) -> list[Case]:
    """The cases of a line, loosest first."""
    factors = sorted(results.scale.factors, reverse=True)
    cases = [bounded(like, factor, **fields) for factor in factors]
    return [case for case in cases if case in results.cases]


def _by_factor(axis: Any, results: Results, like: Case, title: str) -> None:
    for index, (label, fields) in enumerate(_LINES.items()):
        cases = _measured(results, like, fields)
        aside = 1 + _ASIDE * (index - len(_LINES) / 2)
        _line(axis, results, index, label, cases, [(case.factor or 0) * aside for case in cases])
    factors = sorted(results.scale.factors)
    axis.set_xscale("log")
    axis.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axis.minorticks_off()
    axis.invert_xaxis()
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("capacity factor (tighter to the right)", fontsize=10)


def _by_bound(axis: Any, results: Results) -> None:
    for index, (label, fields) in enumerate(_LINES.items()):
        cases = _measured(results, OWN, fields)
        bounds = [results.load(case)["device_bound"] for case in cases]
        _line(axis, results, index, label, cases, bounds)
    axis.set_title("As trained, against what it is worth", fontsize=11)
    axis.set_xlabel("bound of the busiest of 8 devices, before / after", fontsize=10)


def _line(
    axis: Any, results: Results, index: int, label: str, cases: list[Case], where: list[float]
) -> None:
    color, marker, line = STYLES[index % len(STYLES)]
    changes = [results.change(case, case.dropless()) for case in cases]
    below = [max(each.value - each.low, 0) for each in changes]
    above = [max(each.high - each.value, 0) for each in changes]
    axis.errorbar(
        where,
        [each.value for each in changes],
        [below, above],
        color=color,
        marker=marker,
        linestyle=line,
        markersize=5,
        linewidth=1.5,
        capsize=3,
        label=label,
    )
    axis.set_yscale("symlog", linthresh=0.01)
    tidy(axis)
