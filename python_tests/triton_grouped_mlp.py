"""Layers for the tests of Triton's grouped MLP, which they run in the emulator."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from cuda_on_cpu import runtime
from cuda_on_cpu.runtime.triton_operators import UseEmulatedTriton, why_absent
from mlp_layer import MlpLayer

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


class Layer(MlpLayer):
    @classmethod
    def make(cls, dtype, counts, hidden, inner, activation="silu", layout="concat", **options):
        """``activation`` and ``layout`` as the operator takes them."""
        plain = activation.removesuffix("_no_mul")
        gating = layout if plain == activation else "none"
        return super().make(dtype, counts, hidden, inner, plain, gating, **options)

    def run(self, arch="sm_80", seed=0):
        with emulated(arch, seed):
            return torch.ops.capmoe.grouped_mlp(*self.arguments(self.x.dtype))

    def check(self, arch="sm_80", seed=0):
        """Live rows are right, others untouched. -> run()"""
        y = self.run(arch, seed)
        self.check_output(y)
        return y
