"""What was measured, looked up by case and compared."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .quality_settings import Case, Scale
from .quality_statistics import Array, Estimate, bits_per_byte, paired_change

Numbers = dict[str, float | None]


class Results:
    """One run, from its JSON.

    A case of the random policy stands for all its seeds, with the mean of what they did.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.scale = Scale(**{name: tuple(items) for name, items in tree["scale"].items()})
        self.num_bytes = np.array([file["bytes"] for file in tree["text"]["files"]], float)
        self._lines: dict[Case, list[dict[str, Any]]] = {}
        for line in tree["lines"]:
            case = Case.from_json(line["case"]).without_seed()
            self._lines.setdefault(case, []).append(line)

    @property
    def cases(self) -> list[Case]:
        return list(self._lines)

    def nats(self, case: Case) -> Array:
        """[files]."""
        nats: Array = np.mean([line["nats"] for line in self._lines[case]], 0)
        return nats

    def bits(self, case: Case) -> float:
        """Bits per byte."""
        return bits_per_byte(self.nats(case), self.num_bytes)

    def transformers_bits(self) -> float:
        return bits_per_byte(np.array(self.tree["transformers_nats"]), self.num_bytes)

    def seeds_spread(self, case: Case) -> float:
        """Bits per byte between the worst and the best seed."""
        bits = [bits_per_byte(np.array(x["nats"]), self.num_bytes) for x in self._lines[case]]
        return max(bits) - min(bits)

    @functools.cache  # noqa: B019  one object per run of the program
    def change(self, case: Case, base: Case) -> Estimate:
        """Of the loss, in bits per byte; positive is worse than ``base``."""
        return paired_change(self.nats(case), self.nats(base), self.num_bytes)

    def load(self, case: Case) -> dict[str, float]:
        """Loads in all layers, in units of the mean demand (LoadSummary); 0/0 counts as 0."""
        return _mean([line["load"] for line in self._lines[case]])

    def layers(self, case: Case) -> list[dict[str, float]]:
        """The same of every layer."""
        per_seed = [line["layers"] for line in self._lines[case]]
        return [_mean(list(layer)) for layer in zip(*per_seed, strict=True)]

    def dropped(self, case: Case) -> float:
        """Share of the pairs that the top-k asked for and that were not run."""
        return 1 - self.load(case)["kept"]


def _mean(loads: list[Numbers]) -> dict[str, float]:
    return {name: float(np.mean([load[name] or 0.0 for load in loads])) for name in loads[0]}
