"""What every layer's capacity factors cost and gain while all other layers are dropless."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .measured import Factors, Measure, loss


@dataclass(frozen=True)
class Choice:
    """One factor of one layer.

    Attributes:
        factor: None is dropless.
        busiest: rows of the layer's busiest expert or device, summed over calls.
        loss: relative, as measured.
        charged: what the search reckons with: the largest loss of this factor and all looser ones,
            at least 0. A gain from dropping is noise more often than not.
    """

    factor: float | None
    busiest: int
    loss: float
    charged: float


def measure_curves(
    measure: Measure,
    num_layers: int,
    grid: Sequence[float],
    drops: Callable[[int, float], bool],
    reach: float,
    say: Callable[[str], None] = lambda what: None,
) -> list[list[Choice]]:
    """Every layer's choices, dropless first, then tighter and tighter.

    Args:
        measure: reads the sample.
        num_layers: MoE blocks.
        grid: factors, loosest first.
        drops: whether a layer drops anything at a factor; where it doesn't, it isn't measured.
        reach: a layer is done at the first factor whose loss is above this.
        say: told what is measured next.
    """
    dropless = measure((None,) * num_layers)
    curves = []
    for layer in range(num_layers):
        curve = [Choice(None, dropless.busiest[layer], 0.0, 0.0)]
        for factor in grid:
            if not drops(layer, factor):
                continue
            say(f"layer {layer + 1} of {num_layers} alone, factor {factor:g}")
            found = measure(_alone(num_layers, layer, factor))
            cost = loss(found, dropless)
            if cost > reach:
                break
            charged = max(cost, curve[-1].charged)
            curve.append(Choice(factor, found.busiest[layer], cost, charged))
        curves.append(curve)
    return curves


def _alone(num_layers: int, layer: int, factor: float) -> Factors:
    return tuple(factor if each == layer else None for each in range(num_layers))
