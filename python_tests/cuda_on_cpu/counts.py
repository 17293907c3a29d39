"""Counts of several launches side by side."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .emulate import Report
from .structs import COUNTS


def counts_table(reports: dict[str, Report], width: int = 120) -> str:
    """A text table, a row per count and a column per launch. Counts are not times."""
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
    console = Console(width=width, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
