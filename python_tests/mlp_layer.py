"""Experts and their rows, for the tests of a grouped MLP's launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from capmoe_kernels.reference import grouped_mlp
from cases import normal
from checks import assert_close_to_truth


@dataclass
class Groups:
    """Experts' places in the packed buffer: whole numbers of `alignment` rows.

    `size`: the buffer's rows where the offsets do not say how many.
    """

    offsets: torch.Tensor
    counts: torch.Tensor
    size: int | None = None

    @classmethod
    def of(cls, counts, alignment=1):
        padded = torch.tensor([-(-n // alignment) * alignment for n in counts])
        offsets = torch.nn.functional.pad(padded.cumsum(0), (1, 0)).int()
        return cls(offsets, torch.tensor(counts, dtype=torch.int32))

    def rows(self):
        return int(self.offsets[-1]) if self.size is None else self.size

    def live(self):
        mask = torch.zeros(self.rows(), dtype=torch.bool)
        for start, count in zip(self.offsets.tolist(), self.counts.tolist(), strict=False):
            if start >= 0 and count > 0:
                mask[start : start + count] = True
        return mask


@dataclass
class MlpLayer:
    """Experts and their rows. ``gating``: none, concat, interleaved."""

    x: torch.Tensor
    row_tokens: torch.Tensor | None
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None
    groups: Groups
    activation: str
    gating: str

    @classmethod
    def make(
        cls,
        dtype,
        counts,
        hidden,
        inner,
        activation="silu",
        gating="concat",
        bias=False,
        gather=False,
    ):
        """Seven tokens where ``gather``. Rows of no expert are NaN, or ask for token -1."""
        groups = Groups.of(counts, alignment=4)
        experts, width = len(counts), inner * (1 if gating == "none" else 2)
        if gather:
            x = normal((7, hidden), dtype)
            row_tokens = (torch.arange(groups.rows(), dtype=torch.int32) * 5 + 2) % 7
            row_tokens[~groups.live()] = -1
        else:
            x, row_tokens = normal((groups.rows(), hidden), dtype), None
            x[~groups.live()] = float("nan")
        return cls(
            x,
            row_tokens,
            normal((experts, width, hidden), dtype, scale=hidden**-0.5),
            normal((experts, width), dtype) if bias else None,
            normal((experts, hidden, inner), dtype, scale=inner**-0.5),
            normal((experts, hidden), dtype) if bias else None,
            groups,
            activation,
            gating,
        )

    def arguments(self, dtype):
        """Of the operator, in ``dtype``."""
        floats = (self.x, self.gate_up, self.down, self.gate_up_bias, self.down_bias)
        floats = (None if tensor is None else tensor.to(dtype) for tensor in floats)
        places = (self.groups.offsets, self.groups.counts, self.row_tokens)
        if self.gating == "none":
            return (*floats, *places, self.activation + "_no_mul", "concat")
        return (*floats, *places, self.activation, self.gating)

    def reference(self, dtype):
        """capmoe_kernels.reference in ``dtype``."""
        return grouped_mlp(*self.arguments(dtype))

    def check_output(self, y):
        """Live rows are right, others untouched."""
        live = self.groups.live()
        assert y[~live].isnan().all()
        truth, same = self.reference(torch.float64), self.reference(self.x.dtype)
        assert_close_to_truth(y[live], truth[live], same[live])
