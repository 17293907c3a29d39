"""A model's passes over text, each MoE block with a capacity factor of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..capacity import Capacity
from ..distributed import straggler
from ..evaluate.checkpoint import Checkpoint
from ..evaluate.loads import Load
from ..evaluate.recording import record
from ..evaluate.settings import Setting
from ..evaluate.text import Batch
from ..integrations.ranks import reseed
from ..integrations.transformers import (
    apply,
    capacity_scope,
    find_moe_blocks,
    real_tokens,
    recording,
    undo,
)
from .measured import Factors, Measured


@dataclass(frozen=True)
class Method:
    """What all capacities have in common.

    Attributes:
        devices: D ranks, each of which bounds its own tokens; a layer waits for its busiest device.
            None: one rank, and a layer waits for its busiest expert.
        policy, expand: see :class:`~capmoe_kernels.Capacity`; ``expand`` is none or local.
    """

    devices: int | None = None
    policy: str = "score"
    expand: str = "none"

    @property
    def ranks(self) -> int:
        return self.devices or 1

    def capacities(self, factors: Factors, num_experts: int) -> list[Capacity | None]:
        """One for every MoE block; each has random numbers of its own."""
        return [
            None
            if factor is None
            else reseed(self._capacity(factor, num_experts), layer * self.ranks)
            for layer, factor in enumerate(factors)
        ]

    def busiest(self, load: Load) -> int:
        """Rows of what a layer waits for, after capacity."""
        return load.expert_after if self.devices is None else load.device_after

    def _capacity(self, factor: float, num_experts: int) -> Capacity:
        capacity = Setting(factor, self.policy, self.expand).capacity(self.ranks, num_experts)
        assert capacity is not None  # a factor was given
        return capacity


class Reader:
    """Reads one text with any factors, on a model that is taken over.

    Args:
        checkpoint, method: see there.
        batches: the text; at least one.
    """

    def __init__(self, checkpoint: Checkpoint, method: Method, batches: Sequence[Batch]) -> None:
        self._checkpoint, self._method, self._batches = checkpoint, method, batches
        self._documents = 1 + max(int(batch.documents.max()) for batch in batches)

    def __call__(self, factors: Factors) -> Measured:
        """What ``factors`` make of the text."""
        checkpoint, method = self._checkpoint, self._method
        capacities = method.capacities(factors, checkpoint.num_experts)
        nats = torch.zeros(self._documents, dtype=torch.float64)
        loads = [Load() for _ in factors]
        model = checkpoint.model
        with torch.inference_mode(), capacity_scope(model, capacities), recording(model) as records:
            for batch in self._batches:
                nats.index_add_(0, batch.documents, self._nats(model, batch))
                for each in records:
                    loads[each.layer].add(each, checkpoint.top_k, method.ranks)
                records.clear()
        return Measured(factors, nats, tuple(map(method.busiest, loads)), loads)

    def _nats(self, model: Any, batch: Batch) -> Tensor:
        """[B] float64: the loss of every window."""
        device = self._checkpoint.device
        # Padding is on the right of a causal model, so no real token sees it, and attention may.
        with real_tokens(model, batch.token_mask.to(device)):
            logits = model(batch.input_ids.to(device), use_cache=False).logits
        # A window at a time, so that a large vocabulary needs no large memory.
        losses = [
            F.cross_entropy(some.float(), wanted, reduction="none").double().sum()
            for some, wanted in zip(logits, batch.targets.to(device), strict=True)
        ]
        return torch.stack(losses).cpu()


@contextmanager
def taken_over(checkpoint: Checkpoint, method: Method) -> Iterator[int]:
    """The model as :class:`Reader` needs it; gives the number of its MoE blocks."""
    num_layers = len(find_moe_blocks(checkpoint.model))
    model = apply(checkpoint.model, num_ranks=method.ranks)
    try:
        yield num_layers
    finally:
        undo(model)


def find_drops(
    checkpoint: Checkpoint, method: Method, batches: Sequence[Batch]
) -> Callable[[int, float], bool]:
    """Whether a layer drops anything at a factor while those before it are dropless.

    Counted, by :func:`~capmoe_kernels.distributed.straggler`, from one pass without capacity. With
    Expanded Drop every factor changes something. The model must not be taken over.
    """
    if method.expand != "none":
        return lambda layer, factor: True
    trace = record(checkpoint, batches)
    loads = trace.loads(method.ranks).chunk(len(trace.topk_ids))

    def drops(layer: int, factor: float) -> bool:
        capacity = Capacity(factor=factor)
        return straggler(loads[layer], method.ranks, capacity=capacity).dropped > 0

    return drops
