"""What ``bench.quality`` runs: every method of the paper, and the switches around it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from capmoe_kernels import Capacity
from capmoe_kernels.gating import Renormalize

EXPERTS, TOP_K, DEVICES = 64, 4, 8
# Of the experts, how many the paper's Expert Drop leaves out: a tenth.
SKIPPED = EXPERTS // 10
_SEED_STEP = 10_000  # every layer and rank takes a seed of its own from here on


@dataclass(frozen=True)
class Case:
    """One thing to run.

    Attributes:
        capacity: None is dropless.
        renormalize: what weights are divided by (Gating); the model was trained with "none".
        scaled: whether each layer's experts are scaled by what its weights summed to on average
            before: weights that sum to one then leave the size of the layer's output as it was.
        ranks: D, each of which bounds the load of its own tokens.
        skipped: experts left out of each layer, the least loaded of the batch.
    """

    capacity: Capacity | None = None
    renormalize: Renormalize = "none"
    scaled: bool = False
    ranks: int = DEVICES
    skipped: int = 0

    @property
    def factor(self) -> float | None:
        return None if self.capacity is None else self.capacity.factor

    def as_json(self) -> dict[str, Any]:
        capacity = None if self.capacity is None else asdict(self.capacity)
        if capacity is not None:
            del capacity["ratio"]
        return {**asdict(self), "capacity": capacity}

    @staticmethod
    def from_json(tree: dict[str, Any]) -> Case:
        capacity = tree["capacity"]
        if capacity is None:
            return Case(**tree)
        local = capacity["local_experts"]
        fields = {**capacity, "local_experts": local and tuple(local)}
        return Case(**{**tree, "capacity": Capacity(**fields)})

    def dropless(self) -> Case:
        """The same gate and experts, with no bound."""
        gate = "topk" if self.renormalize == "kept" else self.renormalize
        return Case(renormalize=gate, scaled=self.scaled)

    def without_seed(self) -> Case:
        if self.capacity is None:
            return self
        return replace(self, capacity=replace(self.capacity, seed=0))


OWN = Case()
PLAIN = Case(renormalize="topk")
CONVERTED = Case(renormalize="topk", scaled=True)
"""The model as Mixtral weighs its experts, without and with the scaling."""


def bounded(like: Case, factor: float, **fields: Any) -> Case:
    """``like`` with a capacity; what hangs on the number of devices is filled in."""
    if fields.get("expand") == "local":
        fields["local_experts"] = (0, EXPERTS // like.ranks)
    if fields.get("scope") == "device":
        fields["experts_per_device"] = EXPERTS // DEVICES
    return replace(like, capacity=Capacity(factor=factor, **fields))


@dataclass(frozen=True)
class Scale:
    """How much to run: all factors, those of side questions, and seeds of the random policy."""

    factors: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
    few: tuple[float, ...] = (1.0, 1.5, 2.0)
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Section:
    """Lines of one table, which are compared with ``base``."""

    title: str
    base: Case
    cases: list[Case] = field(default_factory=list)
