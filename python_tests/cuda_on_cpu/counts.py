"""Counts of several launches side by side."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .classes import CLASSES
from .emulate import Report
from .sass import SassCounts
from .structs import COUNTS


def _beside(runs: int, estimate: SassCounts | None, name: str) -> str:
    if estimate is None:
        return f"{runs:,}"
    return f"{runs:,} ({round(estimate.classes.get(name, 0)):,})"


def counts_table(
    reports: dict[str, Report], width: int = 120, sass: dict[str, SassCounts] | None = None
) -> str:
    """A text table, a row per count and a column per launch. Counts are not times.

    ``sass``: by launch, what sass_estimate() says of it; its numbers stand behind those of PTX.
    """
    sass = sass or {}
    table = Table(title="counts per launch (emulated; not times)")
    table.add_column("count")
    for name in reports:
        table.add_column(name, justify="right")
    for count in COUNTS:
        table.add_row(count, *(f"{report.counts[count]:,}" for report in reports.values()))
    ratios = {
        "sectors per global load": ("global_load_sectors", "global_load_requests"),
        "wavefronts per shared request": ("shared_wavefronts", "shared_requests"),
    }
    for title, (upper, lower) in ratios.items():
        cells = (
            f"{r.counts[upper] / r.counts[lower]:.2f}" if r.counts[lower] else "-"
            for r in reports.values()
        )
        table.add_row(title, *cells)
    for name in CLASSES:
        if any(report.classes.get(name) for report in reports.values()):
            cells = (
                _beside(report.classes.get(name, 0), sass.get(launch), name)
                for launch, report in reports.items()
            )
            table.add_row(name, *cells)
    if sass:
        totals = (f"{round(sass[launch].total):,}" if launch in sass else "-" for launch in reports)
        table.add_row("SASS estimate", *totals)
    console = Console(width=width, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
