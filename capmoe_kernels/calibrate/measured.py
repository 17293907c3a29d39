"""What a pass over some text found, and what it is compared by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ..evaluate.loads import Load

Factors: TypeAlias = tuple[float | None, ...]
"""A capacity factor for every MoE block, in the model's order; None is dropless."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One pass over a text with these factors.

    Attributes:
        factors: see above.
        nats: [documents] float64, the loss of each document's predicted tokens, summed.
        busiest: rows of every layer's busiest expert or device after capacity, summed over calls.
        loads: of every layer, for tables; may be empty.
    """

    factors: Factors
    nats: Tensor
    busiest: tuple[int, ...]
    loads: list[Load]


Measure: TypeAlias = Callable[[Factors], Measured]
"""Reads one text with given factors."""


def loss(measured: Measured, dropless: Measured) -> float:
    """Relative increase of nats per token, which is that of bits per byte: both read one text."""
    return float(measured.nats.sum() / dropless.nats.sum()) - 1


def step_time(measured: Measured, dropless: Measured) -> float:
    """Of the experts' part of steps that wait for the busiest, relative to dropless.

    It is one over the straggler bound (arXiv 2503.05066, equation 4).
    """
    return sum(measured.busiest) / sum(dropless.busiest)


def once(measure: Measure) -> Measure:
    """``measure`` that remembers, so that no text is read twice with the same factors."""
    seen: dict[Factors, Measured] = {}

    def remembered(factors: Factors) -> Measured:
        if factors not in seen:
            seen[factors] = measure(factors)
        return seen[factors]

    return remembered
