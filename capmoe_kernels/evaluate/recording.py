"""A model's routing of a text, without capacity, as a :class:`~.trace.Trace`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..integrations.transformers import apply, real_tokens, recording, undo
from .checkpoint import Checkpoint
from .text import Batch
from .trace import Trace


def record(checkpoint: Checkpoint, batches: Sequence[Batch]) -> Trace:
    """Run every batch once; a step is a batch, without its padding."""
    ids: list[list[torch.Tensor]] = []
    model = apply(checkpoint.model)
    try:
        with torch.inference_mode(), recording(model) as records:
            for batch in batches:
                with real_tokens(model, batch.token_mask.to(checkpoint.device)):
                    model(batch.input_ids.to(checkpoint.device), use_cache=False)
                ids.append([each.routings[0].expert_ids.cpu().long() for each in records])
                records.clear()
    finally:
        undo(model)
    return Trace(
        _name(checkpoint.path),
        [torch.cat(layer) for layer in zip(*ids, strict=True)],
        [batch.num_tokens for batch in batches],
        checkpoint.num_experts,
        checkpoint.top_k,
        checkpoint.hidden_size,
        checkpoint.model.dtype,
    )


def _name(path: Path) -> str:
    return path.resolve().name
