"""From a request to the factors and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from ..capacity import Capacity
from ..demo.corpus import held_out_files
from ..evaluate.checkpoint import load
from ..evaluate.errors import UsageError
from ..evaluate.run import choose_window, use_threads
from ..evaluate.text import Batch, Document, make_batches, read_texts, tokenize
from .find import Found, find
from .passes import Reader, find_drops, taken_over
from .progress import show_progress
from .request import CalibrateRequest, check_devices, check_request
from .split import check_documents, sample, split


@dataclass(frozen=True, eq=False)
class Part:
    """One part of the text."""

    documents: list[Document]
    batches: list[Batch]

    @property
    def num_tokens(self) -> int:
        return sum(batch.num_tokens for batch in self.batches)

    @property
    def num_bytes(self) -> int:
        return sum(document.num_bytes for document in self.documents)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was found, and about what.

    Attributes:
        request: what was asked.
        source: the model, in words.
        num_experts, top_k: E and k.
        window, threads: as used.
        sample: the text on which each layer was measured alone, of ``calibration``.
        calibration, validation: the two parts of the text.
        found: the search and what it measured.
        capacities: one for every MoE block, as ``apply`` takes them; None is dropless.
    """

    request: CalibrateRequest
    source: str
    num_experts: int
    top_k: int
    window: int
    threads: int
    sample: Part
    calibration: Part
    validation: Part
    found: Found
    capacities: list[Capacity | None]


def calibrate(request: CalibrateRequest) -> Calibration:
    """Find capacity factors, one for each MoE block, that make steps short at a bounded loss.

    The time is that of the experts' part of a step in which each layer waits for its busiest expert
    (device), summed over layers; the loss is the relative increase of bits per byte against
    dropless. Each layer is measured alone; assuming that losses add up, the best factors for a
    budget are a knapsack, solved exactly; the largest budget is sought whose measured loss on the
    calibration text fits; and what is returned is what the validation text confirms, which had no
    part in choosing (docs/calibrate.md).

    Returns:
        Everything that was measured. The files that the request names are written.

    Raises:
        UsageError: in one line, what the user has to change.
        ImportError: scipy is missing.
    """
    from .report import write_files

    check_request(request)
    if request.model is not None:
        calibration = _run(request, request.model, request.model.resolve().name, request.texts)
    else:
        texts = request.texts or [path for path in held_out_files() if path.is_file()]
        if not texts:
            raise UsageError("this Python comes without the standard library's source files")
        with as_file(files("capmoe_kernels.demo") / "model") as model:
            calibration = _run(request, model, "the model that ships", texts)
    write_files(calibration)
    return calibration


def _run(request: CalibrateRequest, model: Path, source: str, texts: Sequence[Path]) -> Calibration:
    parts = split(read_texts(texts, request.max_bytes))
    checkpoint = load(model, request.device)
    check_devices(checkpoint, request.devices)
    window = choose_window(checkpoint, request.window)

    def part(some: list[tuple[Path, str]]) -> Part:
        documents = tokenize(some, checkpoint.tokenizer)
        check_documents(len(documents))
        return Part(documents, make_batches(documents, window, request.batch_tokens))

    method = request.method
    calibration, validation = map(part, parts)
    some = Part(calibration.documents, sample(calibration.batches, request.sample_tokens))
    with use_threads(request.threads) as threads, show_progress() as say:
        say("counting what drops")
        drops = find_drops(checkpoint, method, some.batches)
        with taken_over(checkpoint, method) as num_layers:
            found = find(
                (
                    Reader(checkpoint, method, some.batches),
                    Reader(checkpoint, method, calibration.batches),
                    Reader(checkpoint, method, validation.batches),
                ),
                num_layers,
                request.grid,
                request.max_loss,
                request.confidence,
                drops,
                say,
            )
    return Calibration(
        request=request,
        source=source,
        num_experts=checkpoint.num_experts,
        top_k=checkpoint.top_k,
        window=window,
        threads=threads,
        sample=some,
        calibration=calibration,
        validation=validation,
        found=found,
        capacities=method.capacities(found.factors, checkpoint.num_experts),
    )
