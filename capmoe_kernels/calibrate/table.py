"""The table of ``capmoe calibrate``."""

from __future__ import annotations

from rich.table import Table

from .layers import LayerRow, layer_rows, total_row
from .run import Calibration


def calibration_table(calibration: Calibration) -> Table:
    """One line per layer, then all together."""
    devices = calibration.request.devices
    busiest = "busiest\nexpert" if devices is None else f"busiest of\n{devices} devices"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in ("layer", "factor", busiest, "bound", "pairs\nkept %", "loss\nalone %"):
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    for number, row in enumerate(layer_rows(calibration), 1):
        alone = "-" if row.loss_alone is None else f"{100 * row.loss_alone:+.3f}"
        factor = "dropless" if row.factor is None else f"{row.factor:g}"
        table.add_row(str(number), factor, *_cells(row), alone)
    table.add_row("all", "", *_cells(total_row(calibration)), "", style="bold")
    return table


def _cells(row: LayerRow) -> list[str]:
    mean = row.mean or 1.0
    kept = "-" if row.kept is None else f"{100 * row.kept:.1f}"
    extra = f"+{100 * row.extra:.1f}" if row.extra else ""
    return [
        f"{row.before / mean:.2f} → {row.after / mean:.2f}",
        "-" if row.bound is None else f"{row.bound:.2f}x",
        kept + extra,
    ]
