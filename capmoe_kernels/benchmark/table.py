"""The table of ``capmoe bench``, and the lines under it."""

from __future__ import annotations

from rich.table import Table

from .cold import COLD_TOKENS
from .results import Cell, Result
from .run import Found

_COLUMNS = ("ms", "middle half\nof samples", "speed\nvs loop", "rows", "work", "busiest\nexpert")


def bench_table(found: Found) -> Table:
    """One line per contender and number of tokens; who was not timed says why."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("tokens", justify="right", no_wrap=True, vertical="bottom")
    table.add_column("layer by", no_wrap=True, vertical="bottom")
    for header in _COLUMNS:
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    for cell in found.cells:
        for index, result in enumerate(cell.results):
            tokens = f"{cell.tokens:,}" if index == 0 else ""
            table.add_row(tokens, result.name, *_cells(cell, result))
    return table


def _cells(cell: Cell, result: Result) -> list[str]:
    if result.median is None or result.quartiles is None:
        return ["-"] * len(_COLUMNS)
    low, high = result.quartiles
    after = "" if result.busiest is None else f" → {result.busiest:.2f}"
    return [
        _ms(result.median),
        f"{_ms(low)} to {_ms(high)}",
        f"{cell.speed(result):.2f}x",
        "-" if result.rows is None else f"{result.rows:,}",
        f"{result.work:.2f}",
        "" if result.rows is None else f"{cell.busiest:.2f}{after}",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.{3 if seconds < 1e-3 else 2}f}"


def heading(found: Found) -> str:
    """The layer in a line."""
    shape, request = found.request.layer.shape, found.request
    return (
        f"{request.name}: {shape.experts} experts, top-{shape.top_k}, hidden {shape.hidden},"
        f" intermediate {shape.intermediate}, {request.dtype}, {request.device}"
    )


def bench_notes(found: Found) -> list[str]:
    """Who was not timed, and what the columns mean."""
    request = found.request
    lines = [f"not timed: {'; '.join(who)}: {why}" for why, who in _reasons(found.cells).items()]
    lines += [
        f"ms: {found.clock}, the median of samples that take turns. Every answer was checked"
        " before, in float64 and against the loop."
        f" Load average {found.load[0]:.1f} before and {found.load[1]:.1f} after.",
        "The layer is its routed experts. capmoe is timed with its router's top-k; the others get"
        " theirs for free.",
        "rows: of tokens that experts compute. work: multiplications, of those of the layer"
        " without capacity.",
        "busiest expert: its rows, asked for → kept under a capacity, over the mean asked for;"
        f" log-normal popularity, skew {request.skew:g}, seed {request.seed}.",
    ]
    if min(request.tokens) <= COLD_TOKENS:
        lines.append(f"Up to {COLD_TOKENS} tokens the weights come from memory, not from a cache.")
    return lines


def _reasons(cells: list[Cell]) -> dict[str, list[str]]:
    """Contenders by reason; a reason that not all numbers of tokens share names them."""
    where: dict[tuple[str, str], list[int]] = {}
    for cell in cells:
        for result in cell.results:
            if result.reason is not None:
                where.setdefault((result.name, result.reason), []).append(cell.tokens)
    reasons: dict[str, list[str]] = {}
    for (name, reason), tokens in where.items():
        at = "" if len(tokens) == len(cells) else f" at T = {', '.join(map(str, tokens))}"
        reasons.setdefault(reason, []).append(name + at)
    return reasons
