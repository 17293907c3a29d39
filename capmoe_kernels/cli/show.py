"""What ``capmoe evaluate`` and ``capmoe straggler`` print."""

from __future__ import annotations

from rich.console import Console

from ..evaluate.run import Report, Request, run
from ..evaluate.straggler_run import StragglerRequest, run_straggler
from ..evaluate.straggler_table import straggler_notes, straggler_table
from ..evaluate.table import make_console, make_table, notes


def evaluate_and_print(request: Request) -> None:
    """Evaluate, then print the table and where the files went."""
    console = make_console()
    print_report(console, run(request))
    print_files(console, request)


def count_and_print(request: StragglerRequest) -> None:
    """Count, then print the table and where the files went."""
    found = run_straggler(request)
    trace, console = found.trace, make_console()
    console.print(
        f"{trace.source}: {len(trace.topk_ids)} MoE layers of {trace.num_experts} experts, top-"
        f"{trace.top_k}; {sum(trace.step_tokens):,} tokens in {len(trace.step_tokens)} passes\n"
    )
    console.print(straggler_table(found))
    console.print()
    for line in straggler_notes(found):
        console.print(line)
    for path in (request.json, request.plot, request.save_trace):
        if path is not None:
            console.print(f"wrote {path}")


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
