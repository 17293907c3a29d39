"""Run the model on the text under every setting, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..integrations.transformers import (
    LayerRecord,
    apply,
    real_tokens,
    recording,
    undo,
    watch,
)
from .checkpoint import Checkpoint
from .loads import Load
from .settings import Setting
from .text import Batch

# Logits widened to float32 at a time, so that a large vocabulary needs no large memory.
_LOGITS_AT_ONCE = 2**24


@dataclass(eq=False)
class Run:
    """What one setting did. ``setting`` None is Transformers' own implementation.

    Attributes:
        nats: [documents] float64, the loss of each document's predicted tokens, summed.
        layers: loads of each MoE block; none for Transformers.
        milliseconds: per 1000 tokens, in all MoE blocks together, one number per batch.
        largest_nll_difference: of any token against Transformers, in nats.
    """

    setting: Setting | None
    nats: Tensor
    layers: list[Load] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    largest_nll_difference: float = 0.0


def measure(
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    num_documents: int,
    settings: Sequence[Setting],
    num_devices: int,
    on_pass: Callable[[], None] = lambda: None,
) -> tuple[Run, list[Run]]:
    """Transformers' own blocks and every setting, batch by batch: all meet the same machine.

    Returns:
        (Transformers' run, one run per setting).
    """
    theirs = Run(None, torch.zeros(num_documents, dtype=torch.float64))
    ours = [Run(each, torch.zeros(num_documents, dtype=torch.float64)) for each in settings]
    everyone = [theirs, *ours]
    for run in everyone:  # the first pass pays for threads, caches and compiled shapes
        _forward(checkpoint, batches[0], run.setting, num_devices)
        on_pass()
    for batch in batches:
        expected = None
        for run in everyone:
            nll, records = _forward(checkpoint, batch, run.setting, num_devices)
            expected = nll if expected is None else expected
            _add(run, batch, nll, expected, records, checkpoint.top_k, num_devices)
            on_pass()
    return theirs, ours


def _forward(
    checkpoint: Checkpoint, batch: Batch, setting: Setting | None, num_devices: int
) -> tuple[Tensor, list[LayerRecord]]:
    """:func:`prefill` under a setting, and what the MoE blocks did."""
    with _recorded(checkpoint, setting, num_devices) as records:
        return prefill(checkpoint, batch), records


def prefill(checkpoint: Checkpoint, batch: Batch) -> Tensor:
    """[B, S] float32: the loss of every token in nats, 0 at padding, of a model taken over."""
    model, device = checkpoint.model, checkpoint.device
    # Padding is on the right of a causal model, so no real token sees it, and attention may.
    with torch.inference_mode(), real_tokens(model, batch.token_mask.to(device)):
        logits = model(batch.input_ids.to(device), use_cache=False).logits
        return _nll(logits, batch.targets.to(device)).cpu()


@contextmanager
def _recorded(
    checkpoint: Checkpoint, setting: Setting | None, num_devices: int
) -> Iterator[list[LayerRecord]]:
    if setting is None:
        with watch(checkpoint.model) as records:
            yield records
        return
    capacity = setting.capacity(num_devices, checkpoint.num_experts)
    model = apply(checkpoint.model, capacity=capacity, num_ranks=num_devices)
    try:
        with recording(model) as records:
            yield records
    finally:
        undo(model)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """[B, S] float32: the negative log-likelihood in nats, 0 where there is no target."""
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    rows = max(1, _LOGITS_AT_ONCE // flat.shape[1])
    parts = [
        F.cross_entropy(some.float(), goal, reduction="none")
        for some, goal in zip(torch.split(flat, rows), torch.split(wanted, rows), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)


def _add(
    run: Run,
    batch: Batch,
    nll: Tensor,
    expected: Tensor,
    records: Sequence[LayerRecord],
    top_k: int,
    num_devices: int,
) -> None:
    run.nats.index_add_(0, batch.documents, nll.double().sum(1))
    difference = float((nll - expected).abs().max())
    run.largest_nll_difference = max(run.largest_nll_difference, difference)
    seconds = sum(record.seconds for record in records)
    run.milliseconds.append(1e6 * seconds / batch.num_tokens)
    if run.setting is None:
        return
    run.layers = run.layers or [Load() for _ in records]
    for record in records:
        run.layers[record.layer].add(record, top_k, num_devices)
