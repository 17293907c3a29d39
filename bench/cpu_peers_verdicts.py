"""What the CPU layer must reach, and by how much a run met or missed it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .cpu_peers_parts import DROPLESS, EXPANDED_DROP, TOKEN_DROP
from .cpu_peers_rivals import (
    LOOP,
    OURS,
    TRANSFORMERS,
    VLLM_VEC,
    ZENTORCH,
)

Cell = dict[str, Any]
LARGE, SMALL = (512, 10**9), (1, 32)  # from and to how many tokens
ALL = (1, 10**9)


class Row(NamedTuple):
    case: str
    must: str
    measured: str
    verdict: str


class Bar(NamedTuple):
    """Ours must be ``ratio`` times as fast as ``rival`` in every cell."""

    dtype: str
    tokens: tuple[int, int]
    rival: str
    ratio: float


BARS = (
    Bar("bf16", LARGE, ZENTORCH, 0.97),
    Bar("bf16", LARGE, TRANSFORMERS, 1.2),
    Bar("bf16", LARGE, LOOP, 1.2),
    Bar("bf16", SMALL, ZENTORCH, 1.0),
    Bar("bf16", SMALL, TRANSFORMERS, 2.3),
    Bar("fp32", LARGE, ZENTORCH, 0.97),
    Bar("fp32", LARGE, TRANSFORMERS, 1.3),
    Bar("fp32", SMALL, TRANSFORMERS, 3.5),
    Bar("fp16", ALL, VLLM_VEC, 1.3),
    Bar("fp16", ALL, LOOP, 4.0),
)
PEAK_SHARE, PEAK_TOKENS, PEAK_SHAPES = 0.9, 4096, ("mixs", "olmoe")
BANDWIDTH_SHARE = 0.85
GATE_MS, GATE_RATIO = 1.2, 4.0
CAPACITY_POINTS = 0.05
THREADS_RATIO = 1.85
CALL_US = 25.0


def at_least(value: float, bar: float) -> str:
    return "met" if value >= bar else f"missed by {100 * (1 - value / bar):.1f} %"


def at_most(value: float, bar: float) -> str:
    return "met" if value <= bar else f"missed by {100 * (value / bar - 1):.1f} %"


def words(tokens: tuple[int, int]) -> str:
    return {LARGE: ", T >= 512", SMALL: ", T <= 32", ALL: ""}[tokens]


def rows(results: dict[str, Any]) -> list[Row]:
    """One per demand of which a run says something."""
    cells = results.get("cells", [])
    made = [_bar(cells, bar) for bar in BARS]
    for tokens in (LARGE, SMALL):
        made += [_fastest(cells, dtype, tokens) for dtype in ("bf16", "fp32", "fp16")]
    made += _peak(cells, results.get("peaks", {}))
    made.append(_bandwidth(cells))
    for part, judge in PARTS.items():
        if results.get(part):
            made += judge(results[part])
    return [row for row in made if row is not None]


def _chosen(cells: Iterable[Cell], dtype: str, tokens: tuple[int, int]) -> list[Cell]:
    return [c for c in cells if c["dtype"] == dtype and tokens[0] <= c["tokens"] <= tokens[1]]


def _span(values: dict[str, float]) -> str:
    worst, best = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if len(values) == 1:
        return f"{values[worst]:.2f} ({worst})"
    return f"{values[worst]:.2f} ({worst}) to {values[best]:.2f} ({best})"


def _name(cell: Cell) -> str:
    return f"{cell['shape']} {cell['tokens']}"


def _bar(cells: list[Cell], bar: Bar) -> Row | None:
    chosen = _chosen(cells, bar.dtype, bar.tokens)
    if not chosen:
        return None
    case, must = bar.dtype + words(bar.tokens), f">= {bar.ratio:g} x {bar.rival}"
    ratios = {
        _name(cell): cell["ms"][bar.rival] / cell["ms"][OURS]
        for cell in chosen
        if OURS in cell["ms"] and bar.rival in cell["ms"]
    }
    if not all(OURS in cell["ms"] for cell in chosen):
        return Row(case, must, "ours is wrong", "missed")
    if not ratios:
        return Row(case, must, f"no {bar.rival} that is right", "not measured")
    return Row(case, must, _span(ratios), at_least(min(ratios.values()), bar.ratio))


def _fastest(cells: list[Cell], dtype: str, tokens: tuple[int, int]) -> Row | None:
    """Not demanded, but what a reader asks next."""
    ratios = {}
    for cell in _chosen(cells, dtype, tokens):
        others = {name: ms for name, ms in cell["ms"].items() if name != OURS}
        if OURS in cell["ms"] and others:
            best = min(others, key=others.__getitem__)
            ratios[f"{_name(cell)}, {best}"] = others[best] / cell["ms"][OURS]
    if not ratios:
        return None
    return Row(dtype + words(tokens), "beside the fastest other", _span(ratios), "-")


def _peak(cells: list[Cell], peaks: dict[str, float]) -> list[Row]:
    units = {unit: flops for unit, flops in peaks.items() if unit.endswith("bf16")}
    units = units or {unit: flops for unit, flops in peaks.items() if unit == "fma_fp32"}
    chosen = [
        c
        for c in _chosen(cells, "bf16", (PEAK_TOKENS, PEAK_TOKENS))
        if c["shape"] in PEAK_SHAPES and OURS in c["ms"]
    ]
    if not units or not chosen:
        return []
    highest, made = max(units.values()), []
    for unit, flops in units.items():
        shares = {_name(c): c["flops"] / (1e-3 * c["ms"][OURS]) / flops for c in chosen}
        demanded = flops == highest
        must = f"{f'>= {PEAK_SHARE:.0%} of ' if demanded else ''}{unit}, {flops / 1e9:.0f} GFLOP/s"
        verdict = at_least(min(shares.values()), PEAK_SHARE) if demanded else "-"
        made.append(Row(f"bf16, T = {PEAK_TOKENS}", must, _span(shares), verdict))
    return made


def _bandwidth(cells: list[Cell]) -> Row | None:
    shares = {
        _name(cell): cell["active_bytes"] / (1e-3 * cell["ms"][OURS]) / cell["read"]
        for cell in _chosen(cells, "bf16", SMALL)
        if OURS in cell["ms"] and cell["read"]
    }
    if not shares:
        return None
    must = f">= {BANDWIDTH_SHARE:.0%} of the read bandwidth"
    verdict = at_least(min(shares.values()), BANDWIDTH_SHARE)
    return Row("bf16" + words(SMALL), must, _span(shares), verdict)


def _gate(part: dict[str, Any]) -> list[Row]:
    case, ms = "gate + select + slots", part["ms"]
    if OURS not in ms:
        return [Row(case, "right", part["wrong"][OURS], "missed")]
    mine = ms[OURS]
    made = [Row(case, f"<= {GATE_MS} ms", f"{mine:.2f} ms", at_most(mine, GATE_MS))]
    others = {name: taken for name, taken in ms.items() if name != OURS}
    must = f">= {GATE_RATIO:g} x the best other with capacity"
    if not others:
        return [*made, Row(case, must, "no other that is right", "not measured")]
    best = min(others, key=others.__getitem__)
    measured = f"{others[best] / mine:.2f} ({best}, {others[best]:.2f} ms)"
    return [*made, Row(case, must, measured, at_least(others[best] / mine, GATE_RATIO))]


def _capacity(part: dict[str, Any]) -> list[Row]:
    ms, kept = part["ms"], part["kept"]
    saved, dropped = 1 - ms[TOKEN_DROP] / ms[DROPLESS], 1 - kept[TOKEN_DROP]
    measured = f"{dropped:.1%} dropped, {saved:.1%} less time"
    short = dropped - CAPACITY_POINTS - saved
    verdict = "met" if short <= 0 else f"missed by {100 * short:.1f} points"
    must = f"time falls by the dropped share within {100 * CAPACITY_POINTS:.0f} points"
    where = f", {part['shape']}, T = {part['tokens']}"
    first = Row(TOKEN_DROP + where, must, measured, verdict)
    against = f"{ms[EXPANDED_DROP] / ms[TOKEN_DROP]:.2f} x {TOKEN_DROP}'s time"
    pairs = f"{kept[EXPANDED_DROP] / kept[TOKEN_DROP]:.2f} x its pairs"
    whole = f"{ms[EXPANDED_DROP] / ms[DROPLESS]:.2f} x dropless"
    return [
        first,
        Row(EXPANDED_DROP + where, "said plainly", f"{against} for {pairs}, {whole}", "-"),
    ]


def _threads(part: list[dict[str, Any]]) -> list[Row]:
    ratios = {_name(cell): cell["ms"]["one"] / cell["ms"]["two"] for cell in part}
    verdict = at_least(min(ratios.values()), THREADS_RATIO)
    return [Row("two threads", f">= {THREADS_RATIO} x one", _span(ratios), verdict)]


def _call(part: dict[str, Any]) -> list[Row]:
    must, mine = f"<= {CALL_US:.0f} us a call", part["us"].get(OURS)
    if mine is None:
        return [Row("call at T = 1, E = 8, H = F = 64", must, part["wrong"][OURS], "missed")]
    others = ", ".join(f"{n} {us:.0f}" for n, us in part["us"].items() if n != OURS)
    measured = f"{mine:.1f} us, kernels included ({others})"
    return [Row("call at T = 1, E = 8, H = F = 64", must, measured, at_most(mine, CALL_US))]


def _memory(part: dict[str, Any]) -> list[Row]:
    made = []
    for case, key, bar in (
        ("extra memory of moe", "moe", "moe_allowed"),
        ("memory of pack beyond its result", "pack_beyond_result", "pack_allowed"),
    ):
        case += f", {part['shape']}, T = {part['tokens']}"
        must, measured = f"<= {part[bar] / 1e6:.0f} MB", f"{part[key] / 1e6:.0f} MB"
        made.append(Row(case, must, measured, at_most(part[key], part[bar])))
    return made


PARTS: dict[str, Callable[[Any], list[Row]]] = {
    "routing": _gate,
    "capacity": _capacity,
    "threads": _threads,
    "call": _call,
    "memory": _memory,
}
