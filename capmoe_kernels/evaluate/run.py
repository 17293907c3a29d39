"""From a request to an evaluation and its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, load
from .errors import UsageError
from .measure import measure
from .plot import draw
from .report import as_json, write_json
from .results import Evaluation, evaluate_runs
from .settings import DROPLESS, Setting
from .text import Document, make_batches, read_texts, tokenize

_DEFAULT_WINDOW = 512


@dataclass(frozen=True)
class Request:
    """What to evaluate, and where to write it.

    Attributes:
        model: checkpoint folder.
        texts: files and folders.
        settings: what is compared with dropless.
        num_devices: D, both of the placement and of the ranks whose tokens are bounded.
        max_bytes: of each file; None: all.
        window: tokens of a prefill; None: 512, or the model's longest if that is less.
        batch_tokens: of one forward pass, about.
        device: torch's name of it.
        threads: of the processor; None: torch's choice.
        json, plot: files to write, or None.
        title: of the plot; None: the model's folder.
    """

    model: Path
    texts: Sequence[Path]
    settings: Sequence[Setting]
    num_devices: int = 8
    max_bytes: int | None = None
    window: int | None = None
    batch_tokens: int = 4096
    device: str = "cpu"
    threads: int | None = None
    json: Path | None = None
    plot: Path | None = None
    title: str | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """What was found, and about what."""

    evaluation: Evaluation
    documents: list[Document]
    dtype: str
    threads: int
    experts_implementation: str


def run(request: Request) -> Report:
    """Evaluate and write the files asked for. Everything that can be refused is, before the work.

    Raises:
        UsageError: in one line, what the user has to change.
    """
    check_outputs(request)
    texts = read_texts(request.texts, request.max_bytes)
    checkpoint = load(request.model, request.device)
    _check_devices(checkpoint, request.num_devices)
    window = choose_window(checkpoint, request.window)
    documents = tokenize(texts, checkpoint.tokenizer)
    batches = make_batches(documents, window, request.batch_tokens)
    settings = [DROPLESS, *request.settings]
    passes = (len(batches) + 1) * (len(settings) + 1)
    with use_threads(request.threads) as threads, _progress(passes) as on_pass:
        theirs, ours = measure(
            checkpoint, batches, len(documents), settings, request.num_devices, on_pass
        )
    evaluation = evaluate_runs(
        theirs,
        ours,
        [document.num_bytes for document in documents],
        checkpoint.num_experts,
        request.num_devices,
    )
    _write(request, evaluation, documents, {"window": window, "threads": threads})
    implementation = getattr(checkpoint.model.config, "_experts_implementation", None)
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    return Report(evaluation, documents, dtype, threads, str(implementation))


def _write(
    request: Request, evaluation: Evaluation, documents: list[Document], used: dict[str, int]
) -> None:
    if request.json is not None:
        options: dict[str, Any] = {
            **used,
            "batch_tokens": request.batch_tokens,
            "max_bytes": request.max_bytes,
            "device": request.device,
        }
        write_json(as_json(evaluation, str(request.model), documents, options), request.json)
    if request.plot is not None:
        title = request.title or f"Capacity-aware inference of {request.model.resolve().name}"
        draw(evaluation, title, request.plot)


def check_outputs(request: Request) -> None:
    """Raise UsageError where a file asked for could not be written."""
    for option, path in (("--json", request.json), ("--plot", request.plot)):
        check_output(option, path)


def check_output(option: str, path: Path | None) -> None:
    """Raise UsageError where ``path`` could not be written."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder, expected a file name")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no such folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: may not be written")
    if option == "--plot" and path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{option} {path}: expected a name that ends in .png, .svg or .pdf")


def _check_devices(checkpoint: Checkpoint, num_devices: int) -> None:
    if num_devices < 1 or checkpoint.num_experts % num_devices:
        raise UsageError(
            f"--devices {num_devices}: must divide the model's {checkpoint.num_experts} experts"
        )


def choose_window(checkpoint: Checkpoint, wanted: int | None) -> int:
    """``wanted``, or what the model reads at once."""
    longest = getattr(checkpoint.model.config, "max_position_embeddings", None)
    if wanted is None:
        return min(_DEFAULT_WINDOW, longest or _DEFAULT_WINDOW)
    if longest is not None and wanted > longest:
        raise UsageError(f"--window {wanted}: the model reads at most {longest} tokens at once")
    return wanted


@contextmanager
def use_threads(wanted: int | None) -> Iterator[int]:
    """Compute with so many threads; gives their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(passes: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("forward passes"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=passes)
        yield lambda: progress.advance(task)
