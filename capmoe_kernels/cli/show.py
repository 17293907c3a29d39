"""What ``capmoe evaluate`` prints."""

from __future__ import annotations

from rich.console import Console

from ..evaluate.run import Report, Request, run
from ..evaluate.table import make_console, make_table, notes


def evaluate_and_print(request: Request) -> None:
    """Evaluate, then print the table and where the files went."""
    console = make_console()
    print_report(console, run(request))
    print_files(console, request)


def print_report(console: Console, report: Report) -> None:
    """The text in a line, the table, and the notes to it."""
    documents = report.documents
    tokens = sum(len(document.tokens) - 1 for document in documents)
    size = sum(document.num_bytes for document in documents)
    console.print(f"{len(documents)} files, {tokens:,} tokens, {size:,} bytes of text\n")
    console.print(make_table(report.evaluation))
    console.print()
    for line in notes(
        report.evaluation, report.dtype, report.threads, report.experts_implementation
    ):
        console.print(line)


def print_files(console: Console, request: Request) -> None:
    """Which files were written."""
    for path in (request.json, request.plot):
        if path is not None:
            console.print(f"wrote {path}")
