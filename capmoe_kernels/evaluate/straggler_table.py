"""The table of ``capmoe straggler``, and the lines under it."""

from __future__ import annotations

from rich.table import Table

from ..distributed import StragglerReport
from .straggler_run import Found, Line

METHODS = {"none": "Token Drop", "local": "Expanded Drop"}
_MIB = 2**20


def straggler_table(found: Found) -> Table:
    """One line per number of devices, method and factor."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for header in ("devices", "method"):
        table.add_column(header, no_wrap=True, vertical="bottom")
    for header in (
        "factor",
        "pairs\ndropped %",
        "extra\n%",
        "busiest\nexpert",
        "bound",
        "busiest\ndevice",
        "bound",
        "MiB sent by the\nbusiest device",
    ):
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    steps = len(found.trace.step_tokens)
    shown: tuple[int | None, str | None] = (None, None)
    for line in found.lines:
        devices = "" if line.devices == shown[0] else str(line.devices)
        method = "" if (line.devices, line.expand) == shown else METHODS[line.expand]
        table.add_row(devices, method, *_cells(line, steps))
        shown = (line.devices, line.expand)
    return table


def _cells(line: Line, steps: int) -> list[str]:
    report = line.report
    sign = "" if report.exact or not report.extra else "≥ "
    extra = report.extra / report.before.rows if report.before.rows else 0.0
    return [
        f"{line.factor:g}",
        f"{sign}{100 * report.dropped_share:.1f}",
        f"{sign}{100 * extra:.1f}" if report.extra else "",
        _arrow(report.expert_before, report.expert_after),
        _times(report.expert_bound),
        _arrow(report.device_before, report.device_after),
        _times(report.bound),
        _wire(report, steps),
    ]


def _arrow(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before:.2f} → {after:.2f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _wire(report: StragglerReport, steps: int) -> str:
    """Of all layers of one forward pass."""
    sent = [report.busiest_wire_bytes(load) for load in (report.before, report.after)]
    if sent[0] is None or sent[1] is None:
        return "-"
    return f"{sent[0] / steps / _MIB:.2f} → {sent[1] / steps / _MIB:.2f}"


def straggler_notes(found: Found) -> list[str]:
    """What the columns mean."""
    lines = [
        "Counted from the model's routing without capacity; devices are simulated: experts in"
        " order, each device's own share of the tokens.",
        "busiest: its load before → after capacity / the mean asked for. bound: before / after, the"
        " most that the experts of a step which waits for the busiest can gain.",
    ]
    if any(not line.report.exact for line in found.lines):
        lines.append(
            "≥: Expanded Drop's extra pairs, all on the token's own device, may displace as many"
            " more pairs of the top-k."
        )
    if found.trace.hidden_size is not None:
        lines.append("MiB sent: dispatch and combine of all MoE layers of a forward pass.")
    return lines
