"""How busy the busiest expert and device are, and what bounding that is worth.

Every number is a sum over forward passes: a layer is done when its busiest expert (device) is, so
the sum of the busiest loads is what steps bound by stragglers take, and a ratio of such sums bounds
the speed-up of the expert computation (arXiv 2503.05066, equation 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..integrations.transformers import LayerRecord


@dataclass
class Load:
    """Sums over forward passes for one layer, or for several after :func:`total`.

    Attributes:
        asked: pairs the top-k asked for.
        kept: of these, the pairs that were run.
        extra: pairs run that no top-k asked for (Expanded Drop).
        tokens, orphans: tokens, and those that no expert ran.
        expert_mean: mean pairs asked for per expert.
        expert_before, expert_after: pairs of the busiest expert, asked for and run.
        device_mean, device_before, device_after: the same of devices.
        sorted_before, sorted_after: [E] pairs per expert, busiest first in each pass.
    """

    asked: int = 0
    kept: int = 0
    extra: int = 0
    tokens: int = 0
    orphans: int = 0
    expert_mean: float = 0.0
    expert_before: int = 0
    expert_after: int = 0
    device_mean: float = 0.0
    device_before: int = 0
    device_after: int = 0
    sorted_before: Tensor = field(default_factory=lambda: torch.zeros(()))
    sorted_after: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, record: LayerRecord, top_k: int, num_devices: int) -> None:
        """Count one call of the layer."""
        before = record.demand_per_expert.cpu()
        after = record.tokens_per_expert.cpu()
        asked = int(before.sum())
        self.asked += asked
        for routing in record.routings:
            kept = routing.rows >= 0
            self.kept += int(kept[:, :top_k].sum())
            self.extra += int(kept[:, top_k:].sum())
            self.orphans += int((~kept.any(1)).sum())
        self.tokens += record.num_tokens
        self.expert_mean += asked / before.numel()
        self.expert_before += int(before.max())
        self.expert_after += int(after.max())
        self.device_mean += asked / num_devices
        self.device_before += int(device_loads(before, num_devices).max())
        self.device_after += int(device_loads(after, num_devices).max())
        self.sorted_before = self.sorted_before + before.sort(descending=True).values
        self.sorted_after = self.sorted_after + after.sort(descending=True).values


def device_loads(per_expert: Tensor, num_devices: int) -> Tensor:
    """[D]: experts are placed in contiguous blocks of equal size."""
    return per_expert.view(num_devices, -1).sum(1)


def total(loads: Iterable[Load]) -> Load:
    """All layers as one."""
    out = Load()
    for load in loads:
        for name, value in vars(load).items():
            setattr(out, name, getattr(out, name) + value)
    return out


def ratio(part: float, whole: float) -> float | None:
    """None where the whole is zero, which JSON and the table can show."""
    return part / whole if whole else None
