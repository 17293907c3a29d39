"""Every case on the same batches: losses of files, loads of layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capmoe_kernels import Gating
from capmoe_kernels.demo.corpus import held_out_files
from capmoe_kernels.evaluate.checkpoint import Checkpoint, load
from capmoe_kernels.evaluate.loads import Load, total
from capmoe_kernels.evaluate.measure import prefill
from capmoe_kernels.evaluate.results import summarize
from capmoe_kernels.evaluate.text import Batch, Document, make_batches, read_texts, tokenize
from capmoe_kernels.integrations.transformers import (
    LayerRecord,
    apply,
    recording,
    undo,
    watch,
)

from .quality_model import changed_experts, least_loaded, mean_weight_sums, without_pairs
from .quality_sections import all_cases
from .quality_settings import DEVICES, EXPERTS, OWN, TOP_K, Case, Scale

MODEL = Path(__file__).parent.parent / "capmoe_kernels" / "demo" / "model"


@dataclass(frozen=True)
class Text:
    """What is read: so many held-out files, so much of each, in windows and batches of tokens."""

    files: int = 15
    bytes_each: int = 12 * 1024
    window: int = 1024
    batch_tokens: int = 4096


@dataclass(eq=False)
class Line:
    """What one case did: nats of every document, loads of every layer."""

    case: Case
    nats: Tensor
    layers: list[Load] = field(default_factory=list)


def run(scale: Scale, text: Text, on_batch: Callable[[int, int], None]) -> dict[str, Any]:
    """Everything measured, as plain values."""
    checkpoint = load(MODEL, "cpu")
    if (checkpoint.num_experts, checkpoint.top_k) != (EXPERTS, TOP_K):
        raise SystemExit(f"{MODEL} is not the model of {EXPERTS} experts, top-{TOP_K}")
    texts = read_texts(held_out_files()[: text.files], text.bytes_each)
    documents = tokenize(texts, checkpoint.tokenizer)
    batches = make_batches(documents, text.window, text.batch_tokens)
    cases = all_cases(scale)
    start = time.perf_counter(), time.process_time()
    found = measure(checkpoint, batches, len(documents), cases, on_batch)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    return {
        "scale": asdict(scale),
        "text": {**asdict(text), "files": [_file(document) for document in documents]},
        "batches": len(batches),
        "seconds": dict(zip(("wall", "processor"), seconds, strict=True)),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "transformers_nats": found.transformers.tolist(),
        "weight_sums": found.weight_sums,
        "lines": [_line(line) for line in found.lines],
    }


@dataclass(frozen=True, eq=False)
class Measured:
    """What all cases did.

    Attributes:
        lines: one per case.
        transformers: [documents] float64, nats of Transformers' own blocks.
        weight_sums: of every layer, what a token's weights sum to on average in the model as it is:
            what ``Case.scaled`` scales by.
    """

    lines: list[Line]
    transformers: Tensor
    weight_sums: list[float]


def measure(
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    num_documents: int,
    cases: Sequence[Case],
    on_batch: Callable[[int, int], None] = lambda done, of: None,
) -> Measured:
    """All cases, batch by batch. One that skips experts needs its dropless case before it."""
    theirs = torch.zeros(num_documents, dtype=torch.float64)
    lines = [Line(case, torch.zeros_like(theirs)) for case in cases]
    weight_sums = _weight_sums(checkpoint, batches)
    for done, batch in enumerate(batches):
        with watch(checkpoint.model):
            theirs.index_add_(0, batch.documents, _nats(checkpoint, batch))
        demand: dict[Case, list[Tensor]] = {}
        for line in lines:
            nats, records = _forward(checkpoint, batch, line.case, demand, weight_sums)
            if line.case == line.case.dropless():
                demand[line.case] = [each.demand_per_expert for each in records]
            _add(line, batch, nats, records)
        on_batch(done + 1, len(batches))
    return Measured(lines, theirs, weight_sums)


def _weight_sums(checkpoint: Checkpoint, batches: Sequence[Batch]) -> list[float]:
    with _taken_over(checkpoint, OWN) as records:
        for batch in batches:
            prefill(checkpoint, batch)
    return mean_weight_sums(records)


def _nats(checkpoint: Checkpoint, batch: Batch) -> Tensor:
    """[B] float64, of each window."""
    return prefill(checkpoint, batch).double().sum(1)


def _forward(
    checkpoint: Checkpoint,
    batch: Batch,
    case: Case,
    demand: dict[Case, list[Tensor]],
    weight_sums: Sequence[float],
) -> tuple[Tensor, list[LayerRecord]]:
    skipped: list[Tensor] = []
    if case.skipped:
        skipped = least_loaded(demand[case.dropless()], case.skipped)

    def change(layer: int, weights: Tensor) -> None:
        if case.scaled:
            weights.mul_(weight_sums[layer])
        if skipped:
            weights[skipped[layer]] = 0

    with changed_experts(checkpoint.model, change), _taken_over(checkpoint, case) as records:
        nats = _nats(checkpoint, batch)
    if skipped:
        records = [without_pairs(record, skipped[record.layer]) for record in records]
    return nats, records


@contextmanager
def _taken_over(checkpoint: Checkpoint, case: Case) -> Iterator[list[LayerRecord]]:
    gating = Gating(checkpoint.top_k, renormalize=case.renormalize)
    model = apply(checkpoint.model, gating, case.capacity, num_ranks=case.ranks)
    try:
        with recording(model) as records:
            yield records
    finally:
        undo(model)


def _add(line: Line, batch: Batch, nats: Tensor, records: Sequence[LayerRecord]) -> None:
    line.nats.index_add_(0, batch.documents, nats)
    line.layers = line.layers or [Load() for _ in records]
    for record in records:
        line.layers[record.layer].add(record, TOP_K, DEVICES)


def _file(document: Document) -> dict[str, Any]:
    return {"name": document.path.name, "bytes": document.num_bytes}


def _line(line: Line) -> dict[str, Any]:
    return {
        "case": line.case.as_json(),
        "nats": line.nats.tolist(),
        "load": asdict(summarize(total(line.layers))),
        "layers": [asdict(summarize(load)) for load in line.layers],
    }
