"""The one table, and the lines under it that say what was compared."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .results import Evaluation, Result

# What the columns need: a narrower terminal wraps lines, which loses nothing.
_WIDTH = 124
# Bits per byte by which dropless may differ from Transformers; 2e-3 in 16 bits.
_TOLERANCE = {"float32": 1e-4}


def make_console() -> Console:
    """Standard output, wide enough for the table."""
    width = Console().width
    return Console(highlight=False, width=max(width, _WIDTH), soft_wrap=width < _WIDTH)


def make_table(evaluation: Evaluation) -> Table:
    """One line per setting, Transformers first."""
    devices = evaluation.num_devices
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("policy", no_wrap=True, vertical="bottom")
    for header in (
        "factor",
        "pairs\nkept %",
        "busiest\nexpert",
        "bound",
        f"busiest of\n{devices} devices",
        "bound",
        "bits per\nbyte",
        "change ± s.e.\nto dropless",
        "MoE ms per\n1k tokens",
        "speed\nvs HF",
    ):
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    previous = None
    for result in [evaluation.transformers, evaluation.dropless, *evaluation.results]:
        name = _name(result)
        table.add_row("" if name == previous else name, *_cells(result))
        previous = name
    return table


def _name(result: Result) -> str:
    return "Transformers" if result.setting is None else result.setting.name


def _cells(result: Result) -> list[str]:
    load, setting = result.load, result.setting
    factor = "" if setting is None or setting.factor is None else f"{setting.factor:g}"
    bits = f"{result.bits_per_byte:.4f}"
    times = [f"{result.moe_ms:.2f}", f"{result.speed:.2f}x"]
    if load is None:
        return [factor, "", "", "", "", "", bits, "", *times]
    kept = _percent(load.kept) + (f"+{_percent(load.extra)}" if load.extra else "")
    change = "" if not factor else _change(result)
    return [
        factor,
        kept,
        _arrow(load.expert_before, load.expert_after),
        _times(load.expert_bound),
        _arrow(load.device_before, load.device_after),
        _times(load.device_bound),
        bits,
        change,
        *times,
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _arrow(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{before:.2f} → {after:.2f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _change(result: Result) -> str:
    error = "" if result.change_error is None else f" ± {result.change_error:.4f}"
    return f"{result.change:+.4f}{error}"


def notes(evaluation: Evaluation, dtype: str, threads: int, implementation: str) -> list[str]:
    """What stands under the table: the check of dropless, and what the columns mean."""
    devices = evaluation.num_devices
    lines = [
        agreement(evaluation, dtype),
        "pairs: (token, expert). busiest: its load before → after capacity / the mean asked for.",
        "bound: before / after, the most that a step which waits for the busiest can gain.",
    ]
    if devices > 1:
        lines.append(
            f"Capacity is applied by each of {devices} simulated ranks to its own tokens;"
            f" {_count(evaluation.num_experts // devices, 'expert')} per device, in order."
        )
    if any(result.load and result.load.extra for result in evaluation.results):
        lines.append("kept % +x: x % more pairs, run by experts on the token's own device (local).")
    lines.append(
        f"MoE ms: all MoE blocks, with {_count(threads, 'processor thread')}."
        f" HF: Transformers, its {implementation} experts."
    )
    if devices > 1:
        lines.append(
            f"One process plays the {devices} ranks in turn, which costs the bounded rows time that"
            " dropless does not pay: their ms are no measure of what capacity gains."
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def agreement(evaluation: Evaluation, dtype: str) -> str:
    """Whether dropless is Transformers' model, in numbers.

    In 16 bits tied router logits and rounding let single tokens differ, as they do between
    Transformers' own implementations; the sum over a text hardly does.
    """
    theirs, ours = evaluation.transformers, evaluation.dropless
    difference = abs(ours.bits_per_byte - theirs.bits_per_byte)
    verb = "equals" if difference < _TOLERANCE.get(dtype, 2e-3) else "DIFFERS FROM"
    return (
        f"dropless {verb} Transformers: bits per byte differ by {difference:.4f}"
        f" ({dtype}; any token by at most {ours.largest_nll_difference:.2g} nats)"
    )
