"""Draws docs/images/*.svg from bench/concept_numbers.py.

    python -m bench.draw_concepts [FOLDER]

Every picture carries the numbers it was drawn from as its description; python_tests/test_docs.py
compares them with what the library says today.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from .concept_numbers import numbers

IMAGES = Path(__file__).parents[1] / "docs/images"
KEPT, LOST, MORE, IDLE, INK = "#8fd3bd", "#d55e00", "#8fbfe8", "#e8e8e8", "#222222"
EXPERTS = ("#f6c667", "#9bd0f0", "#8fd3bd", "#f4a582", "#d9b3dd", "#cfd3d8")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    # White paper in light and in dark; letters as outlines, so that they fit everywhere.
    plt.rcParams.update({"svg.hashsalt": "capmoe", "font.size": 10, "text.color": INK})
    shown = numbers()
    for draw in (straggler, rules, rows, steps):
        figure = draw(shown)
        about = {"Date": None, "Description": json.dumps(shown)}
        path = folder / f"{draw.__name__}.svg"
        figure.savefig(path, metadata=about, bbox_inches="tight", pad_inches=0.15)
        plt.close(figure)
        print(path)


def straggler(shown: dict[str, Any]) -> plt.Figure:
    """Loads of experts, and how long devices compute and wait."""
    figure, (loads, before, after) = plt.subplots(
        1, 3, figsize=(10, 2.9), width_ratios=[1.2, 1, 1], layout="constrained"
    )
    demand, capacity = shown["demand"], shown["capacity"]
    kept = shown["tokens_per_expert"]
    places = range(shown["experts"])
    loads.bar(places, kept, color=KEPT, label="kept")
    full = [place for place in places if demand[place] > kept[place]]
    lost = [demand[place] - kept[place] for place in full]
    style = {"color": "white", "edgecolor": LOST, "hatch": "////"}
    loads.bar(full, lost, bottom=[kept[place] for place in full], label="dropped", **style)
    loads.axhline(capacity, color=INK, linestyle="--", linewidth=1)
    loads.text(shown["experts"] - 0.45, capacity + 0.15, f"C = {capacity}", ha="right")
    loads.set(title="pairs by expert, at factor 1", xlabel="expert", xticks=list(places))
    loads.legend(frameon=False)
    busy = [_by_device(per_expert, shown["experts_per_device"]) for per_expert in (demand, kept)]
    _timeline(before, "dropless: two devices wait", busy[0], max(busy[0]))
    _timeline(after, "Token Drop, same scale", busy[1], max(busy[0]))
    for axes in (loads, before, after):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _by_device(per_expert: list[int], held: int) -> list[int]:
    return [sum(per_expert[start : start + held]) for start in range(0, len(per_expert), held)]


def _timeline(axes: Axes, title: str, busy: list[int], end: int) -> None:
    step = max(busy)
    devices = [f"device {device}" for device in range(len(busy))]
    axes.barh(devices, busy, color=KEPT)
    axes.barh(devices, [step - own for own in busy], left=busy, color=IDLE)
    for device, own in enumerate(busy):
        axes.text(own / 2, device, str(own), ha="center", va="center")
        if own < step - 2:
            axes.text((own + step) / 2, device, "waits", ha="center", va="center")
    axes.axvline(step, color=LOST, linewidth=1.5)
    axes.set(title=title, xlabel="pairs computed", xlim=(0, end + 0.5))
    axes.invert_yaxis()


def rules(shown: dict[str, Any]) -> plt.Figure:
    """Tokens by experts, a panel for each rule."""
    figure, panels = plt.subplots(1, len(shown["kept"]), figsize=(10.4, 4.9), layout="constrained")
    asked = {tuple(pair) for pair in shown["kept"]["dropless"]}
    for axes, (name, kept) in zip(panels, shown["kept"].items(), strict=True):
        _grid(axes, shown, asked, {tuple(pair) for pair in kept})
        axes.set_title(name)
    panels[0].set_ylabel("token")
    return figure


def _grid(axes: Axes, shown: dict[str, Any], asked: set[Any], kept: set[Any]) -> None:
    tokens, experts = shown["tokens"], shown["experts"]
    for token in range(tokens):
        for expert in range(experts):
            pair = (token, expert)
            color = (KEPT if pair in asked else MORE) if pair in kept else "white"
            axes.add_patch(Rectangle(pair[::-1], 1, 1, facecolor=color, edgecolor=IDLE))
            if pair in kept | asked:
                percent = shown["percent"][token][expert]
                axes.text(expert + 0.5, token + 0.5, str(percent), ha="center", va="center")
            if pair in asked - kept:
                axes.plot([expert + 0.1, expert + 0.9], [token + 0.9, token + 0.1], color=LOST)
    for expert in range(experts):
        load = sum(pair[1] == expert for pair in kept)
        axes.text(expert + 0.5, tokens + 0.6, str(load), ha="center", weight="bold")
    for border in range(0, experts + 1, shown["experts_per_device"]):
        axes.plot([border, border], [0, tokens], color=INK, linewidth=1)
    axes.set(xlim=(-0.1, experts + 0.1), ylim=(tokens + 0.9, -0.1), aspect="equal")
    axes.set_xticks([expert + 0.5 for expert in range(experts)], range(experts))
    axes.set_yticks([token + 0.5 for token in range(tokens)], range(tokens))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def rows(shown: dict[str, Any]) -> plt.Figure:
    """The packed buffer and the padded one."""
    figure, axes = plt.subplots(figsize=(11, 2.9))
    _strip(axes, shown["row_tokens"], shown["expert_offsets"], shown["tokens_per_expert"], 3)
    for expert, start in enumerate(shown["expert_offsets"]):
        name = f"expert {expert}" if expert < shown["experts"] else "end"
        axes.text(start, 4.15, f"{start}", ha="center", weight="bold", size=9)
        if expert < 3:
            axes.text(start + 2, 4.65, name, ha="center", color="#555555", size=9)
    size = len(shown["padded_tokens"]) // shown["experts"]
    starts = [expert * size for expert in range(shown["experts"] + 1)]
    _strip(axes, shown["padded_tokens"], starts, shown["tokens_per_expert"], 0)
    for expert, start in enumerate(starts[:-1]):
        axes.text(start + size / 2, 1.25, f"expert {expert}", ha="center", color="#555555", size=9)
    for y, name in ((3.5, "packed"), (0.5, "padded")):
        axes.text(-0.4, y, name, ha="right", va="center", weight="bold")
    axes.text(-0.4, 4.3, "expert_offsets", ha="right", va="center", color="#555555", size=9)
    axes.set(xlim=(-3.2, len(shown["row_tokens"]) + 0.2), ylim=(-0.2, 5.1))
    axes.axis("off")
    return figure


def _strip(axes: Axes, tokens: list[int], starts: list[int], counts: list[int], y: int) -> None:
    owner = [-1] * len(tokens)
    for expert, count in enumerate(counts):
        owner[starts[expert] : starts[expert] + count] = [expert] * count
    for row, (token, expert) in enumerate(zip(tokens, owner, strict=True)):
        color = "white" if expert < 0 else EXPERTS[expert]
        hatch = "////" if expert < 0 else None
        axes.add_patch(Rectangle((row, y), 1, 1, facecolor=color, edgecolor="#999999", hatch=hatch))
        if token >= 0:
            axes.text(row + 0.5, y + 0.5, str(token), ha="center", va="center")


STEPS = (
    ("gate", "scores, top-k,\ncandidates", "[T, E]"),
    ("select", "who stays,\nin which row", "[T, K]"),
    ("dispatch", "copy tokens\nto rows", "Routing"),
    ("grouped_mlp", "each expert\non its rows", "[N, H]"),
    ("combine", "weighted sum\nper token", "[N, H]"),
)


def steps(shown: dict[str, Any]) -> plt.Figure:
    """The five ops, and what passes from one to the next."""
    figure, axes = plt.subplots(figsize=(10, 2.5))
    wide, apart = 2.4, 3.9
    for place, (name, what, arrives) in enumerate(STEPS):
        x = place * apart
        box = FancyBboxPatch((x, 0), wide, 1.6, "round,pad=0.08", facecolor=EXPERTS[place])
        axes.add_patch(box)
        axes.text(x + wide / 2, 1.2, name, ha="center", va="center", weight="bold", size=9)
        axes.text(x + wide / 2, 0.5, what, ha="center", va="center", size=8)
        _arrow(axes, x - apart + wide, x, arrives)
    _arrow(axes, 4 * apart + wide, 5 * apart, "[T, H]")
    for last, y, name in ((1, 2.1, "cm.route"), (4, 3.0, "cm.moe: all in one, without the copy")):
        stop = last * apart + wide
        axes.plot([0, stop], [y, y], color=INK, linewidth=1)
        axes.text(stop / 2, y + 0.12, name, ha="center")
    axes.set(xlim=(wide - apart, 5 * apart), ylim=(-0.2, 3.5), aspect="equal")
    axes.axis("off")
    return figure


def _arrow(axes: Axes, start: float, stop: float, label: str) -> None:
    ends = (start + 0.12, 0.8), (stop - 0.12, 0.8)
    axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=INK))
    axes.text((start + stop) / 2, 1.0, label, ha="center", size=8)


if __name__ == "__main__":
    main()
