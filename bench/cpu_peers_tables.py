"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .cpu_peers_rivals import OURS
from .cpu_peers_verdicts import rows

Cell = dict[str, Any]


def markdown(results: dict[str, Any]) -> str:
    parts = ["\n".join(f"- {key}: {_said(value)}" for key, value in results["header"].items())]
    parts.append(_table(["case", "must", "measured", "verdict"], rows(results)))
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in results.get("cells", []):
        groups.setdefault((cell["dtype"], cell["shape"]), []).append(cell)
    parts += [_group(dtype, shape, cells) for (dtype, shape), cells in groups.items()]
    if results.get("routing"):
        taken = ", ".join(f"{name} {ms:.2f}" for name, ms in results["routing"]["ms"].items())
        parts.append(f"gate + select + slots, ms: {taken}{_wrong(results['routing']['wrong'])}")
    parts += [
        f"Not in the {dtype} tables: {', '.join(f'{name} ({why})' for name, why in out.items())}"
        for dtype, out in results.get("absent", {}).items()
        if out
    ]
    parts += [f"Failed: {what}" for what in results.get("failed", [])]
    if results.get("skipped"):
        parts.append(f"Not measured, for want of time: {', '.join(results['skipped'])}")
    return "\n\n".join(parts) + "\n"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return str(value)


def _wrong(wrong: dict[str, str]) -> str:
    return "".join(f"; {name}: {why}" for name, why in wrong.items())


def _table(header: list[str], body: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _group(dtype: str, shape: str, cells: list[Cell]) -> str:
    names: dict[str, None] = {}
    for cell in cells:
        names.update(dict.fromkeys([*cell["ms"], *cell["wrong"]]))
    header = [f"{dtype} {shape}: ms (x ours)", *(f"T={cell['tokens']}" for cell in cells)]
    body = [[name, *(_entry(cell, name) for cell in cells)] for name in names]
    body.append(["ours, GFLOP/s", *(_rate(cell, "flops") for cell in cells)])
    body.append(["ours, GB/s of weights", *(_rate(cell, "active_bytes") for cell in cells)])
    body.append(["read, GB/s", *(_read(cell) for cell in cells)])
    wrong = {
        f"{name}, T={cell['tokens']}": why for cell in cells for name, why in cell["wrong"].items()
    }
    said = "\n\nWrong: " + _wrong(wrong)[2:] if wrong else ""
    return _table(header, body) + said


def _entry(cell: Cell, name: str) -> str:
    if name not in cell["ms"]:
        return "wrong"
    ms, mine = cell["ms"][name], cell["ms"].get(OURS)
    return f"{ms:.2f}" + ("" if mine is None else f" ({ms / mine:.2f})")


def _rate(cell: Cell, work: str) -> str:
    mine = cell["ms"].get(OURS)
    return "-" if mine is None else f"{cell[work] / (1e6 * mine):.1f}"


def _read(cell: Cell) -> str:
    return "-" if cell["read"] is None else f"{cell['read'] / 1e9:.1f}"
