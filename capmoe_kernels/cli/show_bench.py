"""What ``capmoe bench`` prints."""

from __future__ import annotations

from rich.console import Console

from ..benchmark.request import Request
from ..benchmark.run import run_bench
from ..benchmark.table import bench_notes, bench_table, heading
from ..benchmark.timing import keep_freed_memory
from ..evaluate.table import make_console


def bench_and_print(request: Request) -> None:
    """Measure, then print the table and where the files went."""
    keep_freed_memory()
    progress = Console(stderr=True)  # plain lines: a thread that draws a bar would be measured

    def on_cell(tokens: int) -> None:
        if progress.is_terminal:
            progress.print(f"{request.name}, {tokens:,} tokens ...", style="dim")

    found, console = run_bench(request, on_cell), make_console()
    console.print(f"{heading(found)}\n")
    console.print(bench_table(found))
    console.print()
    for line in bench_notes(found):
        console.print(line, markup=False)  # it may quote another library's words
    for path in (request.json, request.plot):
        if path is not None:
            console.print(f"wrote {path}", markup=False)
