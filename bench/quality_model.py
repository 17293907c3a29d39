"""The model with other experts for a while: some left out, or all of them scaled.

Leaving out is the paper's Expert Drop, a baseline and not something the package offers: tokens of
an expert that is left out lose its term. Scaling belongs to the conversion to weights that sum to
one. Both change the experts' last projection, and the model runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from capmoe_kernels.integrations.transformers import LayerRecord, find_moe_blocks


@contextmanager
def changed_experts(model: Any, change: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Let ``change`` write to a layer's [E, H, F] last projection; undone at the end.

    Args:
        model: one that is not taken over.
        change: called with every layer's number and weights.
    """
    weights = [block.parts.experts.down_proj.data for block in find_moe_blocks(model)]
    before = [weight.clone() for weight in weights]
    try:
        for layer, weight in enumerate(weights):
            change(layer, weight)
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)


def least_loaded(demand: Sequence[Tensor], count: int) -> list[Tensor]:
    """Of every layer's [E] demand, [count] expert ids; ties to the lower id."""
    return [each.sort(stable=True).indices[:count] for each in demand]


def without_pairs(record: LayerRecord, skipped: Tensor) -> LayerRecord:
    """The record as if the skipped experts had not run their pairs."""
    routings = []
    for routing in record.routings:
        gone = torch.isin(routing.expert_ids, skipped.to(routing.expert_ids.dtype))
        loads = routing.tokens_per_expert.clone()
        loads[skipped] = 0
        rows = torch.where(gone, -1, routing.rows)
        routings.append(routing._replace(rows=rows, tokens_per_expert=loads))
    return replace(record, routings=routings)


def mean_weight_sums(records: Sequence[LayerRecord]) -> list[float]:
    """Of every layer, the mean over tokens of what a token's weights sum to."""
    sums: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for record in records:
        weights = sum(float(routing.weights.double().sum()) for routing in record.routings)
        sums[record.layer] = sums.get(record.layer, 0.0) + weights
        tokens[record.layer] = tokens.get(record.layer, 0) + record.num_tokens
    return [sums[layer] / tokens[layer] for layer in sorted(sums)]
