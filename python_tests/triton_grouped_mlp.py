"""Layers for the tests of Triton's grouped MLP, which they run in the emulator."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from capmoe_kernels import reference
from cases import normal
from checks import assert_close_to_truth
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime.triton_operators import UseEmulatedTriton, why_absent

if why_absent() is not None:
    pytest.skip(f"triton-emulated: {why_absent()}", allow_module_level=True)

ARCHS = ["sm_80", "sm_90"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
archs = pytest.mark.parametrize("arch", ARCHS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@contextmanager
def emulated(arch="sm_80", seed=0):
    """Every op runs its Triton kernels, of which the emulator has nothing to say."""
    with UseEmulatedTriton(), runtime.recording(arch=arch, seed=seed) as record:
        yield record
    assert record.warnings == []


@dataclass
class Layer:
    """Experts and their rows, each expert's from a multiple of four on."""

    x: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    offsets: torch.Tensor
    counts: torch.Tensor
    row_tokens: torch.Tensor | None
    activation: str
    layout: str

    @classmethod
    def make(
        cls,
        dtype,
        counts,
        hidden,
        inner,
        activation="silu",
        layout="concat",
        bias=False,
        gather=False,
    ):
        """Seven tokens where ``gather``. Rows of no expert are NaN, or ask for token -1."""
        padded = torch.tensor([-(-n // 4) * 4 for n in counts])
        offsets = torch.nn.functional.pad(padded.cumsum(0), (1, 0)).int()
        experts, rows = len(counts), int(offsets[-1])
        width = inner if activation.endswith("_no_mul") else 2 * inner
        live = live_rows(offsets, counts, rows)
        if gather:
            x = normal((7, hidden), dtype)
            row_tokens = (torch.arange(rows, dtype=torch.int32) * 5 + 2) % 7
            row_tokens[~live] = -1
        else:
            x, row_tokens = normal((rows, hidden), dtype), None
            x[~live] = torch.nan
        return cls(
            x,
            normal((experts, width, hidden), dtype, scale=hidden**-0.5),
            normal((experts, hidden, inner), dtype, scale=inner**-0.5),
            normal((experts, width), dtype) if bias else None,
            normal((experts, hidden), dtype) if bias else None,
            offsets,
            torch.tensor(counts, dtype=torch.int32),
            row_tokens,
            activation,
            layout,
        )

    def live(self):
        rows = len(self.x) if self.row_tokens is None else len(self.row_tokens)
        return live_rows(self.offsets, self.counts.tolist(), rows)

    def tensors(self, dtype):
        floats = (self.x, self.gate_up, self.down, self.gate_up_bias, self.down_bias)
        floats = (None if tensor is None else tensor.to(dtype) for tensor in floats)
        rest = (self.offsets, self.counts, self.row_tokens, self.activation, self.layout)
        return (*floats, *rest)

    def run(self, arch="sm_80", seed=0):
        with emulated(arch, seed):
            return torch.ops.capmoe.grouped_mlp(*self.tensors(self.x.dtype))

    def check(self, arch="sm_80", seed=0):
        """Live rows are right, others untouched. -> run()"""
        y, live = self.run(arch, seed), self.live()
        assert y[~live].isnan().all()
        truth = reference.grouped_mlp(*self.tensors(torch.float64))
        same = reference.grouped_mlp(*self.tensors(self.x.dtype))
        assert_close_to_truth(y[live], truth[live], same[live])
        return y


def live_rows(offsets, counts, rows):
    mask = torch.zeros(rows, dtype=torch.bool)
    for start, count in zip(offsets.tolist(), counts, strict=False):
        mask[start : start + count] = True
    return mask
