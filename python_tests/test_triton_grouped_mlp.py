"""The grouped MLP of Triton, executed without a GPU: values, memory, tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from capmoe_kernels.triton_kernels import tuning
from capmoe_kernels.triton_kernels.tiles import Tile, table_of
from checks import same_bits
from mlp_layer import Groups
from triton_grouped_mlp import (  # skips where there is no Triton
    ARCHS,
    DTYPES,
    Layer,
    archs,
    dtypes,
    emulated,
)

GATED = ["silu", "gelu", "gelu_tanh", "swigluoai"]
PLAIN = [f"{name}_no_mul" for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")]
pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture
def use_tiles(monkeypatch):
    """A function that makes every up product of the test take one tile, and every down another."""

    def use(up, down):
        monkeypatch.setattr(tuning, "known_tile", lambda *args: down if args[2] == "down" else up)

    return use


every_tile = pytest.mark.parametrize(
    ("arch", "dtype", "start"),
    [
        (arch, dtype, start)
        for arch in ARCHS
        for dtype in DTYPES[:2]
        for start in table_of(arch, dtype)
    ],
)


@pytest.mark.parametrize(
    ("arch", "dtype"), [*(("sm_80", dtype) for dtype in DTYPES), ("sm_90", torch.bfloat16)]
)
def test_activations(dtype, arch):
    """Every activation, with and without biases and a gather, in two schedules."""
    for i, activation in enumerate(GATED + PLAIN):
        options = {"bias": i % 2 == 0, "gather": i in (1, 2, 6)}
        layout = "interleaved" if activation in ("swigluoai", "gelu_tanh") else "concat"
        layer = Layer.make(dtype, [3, 0, 20, 0, 1, 16], 48, 32, activation, layout, **options)
        layer.check(arch, seed=3 * (i % 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # float16 overflows
@pytest.mark.parametrize("activation", GATED + PLAIN)
def test_activations_far_out(dtype, activation):
    """Projections to about +-100: clamps, tails, overflow of exp."""
    layer = Layer.make(dtype, [9, 4], 48, 32, activation)
    layer.gate_up *= 30
    layer.check()


@every_tile
def test_tiles(use_tiles, arch, dtype, start):
    """Whole tiles and parts, sizes of whole steps of k and not, in two schedules."""
    up, down = table_of(arch, dtype)[start]
    use_tiles(up, down)
    counts = [5, 0, down.rows + 2, 0]
    for seed, sizes in [(0, (2 * up.depth, 48)), (3, (48, up.columns + 16))]:
        Layer.make(dtype, counts, *sizes, bias=seed == 0, gather=seed == 3).check(arch, seed)


@dtypes
@pytest.mark.parametrize(
    ("hidden", "inner"), [(16, 80), (80, 16), (40, 136), (100, 33), (33, 100), (1, 1), (1, 16)]
)
def test_tails(dtype, hidden, inner):
    """Sizes that are no whole tile, nor, for the most, known to be whole vectors."""
    for layout in ("concat", "interleaved"):
        Layer.make(
            dtype, [5, 0, 18], hidden, inner, "silu", layout, bias=layout == "concat"
        ).check()


@dtypes
def test_interleaved_is_concat_shuffled(dtype):
    concat = Layer.make(dtype, [5, 0, 18], 48, 32, bias=True)
    order = torch.arange(64).view(2, 32).t().reshape(-1)
    interleaved = replace(
        concat,
        gate_up=concat.gate_up[:, order],
        gate_up_bias=concat.gate_up_bias[:, order],
        gating="interleaved",
    )
    live = concat.groups.live()
    assert same_bits(interleaved.run()[live], concat.run()[live])


@archs
@dtypes
def test_bits_depend_on_nothing_else(dtype, arch):
    """Schedules, a copy for the gather, strides, neighbours with NaN: a row's bits are its own."""
    layer = Layer.make(dtype, [9, 0, 21], 80, 48, gather=True)
    live, first = layer.groups.live(), layer.check(arch)
    assert same_bits(layer.run(arch, seed=3)[live], first[live])
    copied = replace(layer, x=layer.x[layer.row_tokens.clamp(min=0).long()], row_tokens=None)
    assert same_bits(copied.run(arch)[live], first[live])
    strided = replace(
        layer, x=layer.x.t().contiguous().t(), gate_up=layer.gate_up.mT.contiguous().mT
    )
    assert same_bits(strided.run(arch)[live], first[live])
    copied.x[4] = torch.nan
    copied.gate_up[1] = torch.nan
    spoilt = copied.run(arch)
    assert spoilt[4].isnan().all()
    live[4] = False
    assert same_bits(spoilt[live], first[live])


@pytest.mark.parametrize(
    "counts", [[0, 0, 0], [0, 0, 150, 0], [1], [64, 0, 0], [0, 0, 129], [7, 530, 3], [2100]]
)
def test_counts(use_tiles, counts):
    """No rows, one expert with all, whole tiles and one more, more than go together."""
    use_tiles(*[Tile(128, 32, 32, 4, 3)] * 2)
    Layer.make(torch.bfloat16, counts, 16, 48).check()


@pytest.mark.parametrize("experts", [60, 127, 129, 300, 4096])
def test_many_experts(experts):
    """No power of two, more experts than threads: a few with rows, at both ends and between."""
    counts = [0] * experts
    for e in {0, 3, experts // 2, experts - 2, experts - 1}:
        counts[e] = 1 + e % 19
    Layer.make(torch.float16, counts, 16, 16).check()


@archs
@dtypes
def test_long_sums(dtype, arch):
    """A float32 chain of 4096 would be further from the truth than the rule allows."""
    Layer.make(dtype, [5], 4096, 48).check(arch)


def test_identity_in_float32_is_exact():
    eye = torch.eye(48).expand(2, 48, 48)
    layer = Layer.make(torch.float32, [9, 4], 48, 48, "relu_no_mul")
    layer = replace(layer, x=layer.x.abs(), gate_up=eye, down=eye)
    live = layer.groups.live()
    assert layer.run()[live].equal(layer.x[live])


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("offsets", "counts"),
    [
        ([0, 8, 16], [HUGE, 3]),
        ([-4, 30, 16], [9, 9]),
        ([HUGE, -(2**31), 7], [4, 4]),
        ([0, 8, 16], [-3, -HUGE]),
        ([0, 8, 16], [-1, 8]),
    ],
)
def test_rows_that_are_none(offsets, counts):
    """Offsets and counts that select would not make reach no memory but the rows' own."""
    layer = Layer.make(torch.bfloat16, [16, 16], 16, 16, gather=True)
    layer.groups = Groups(torch.tensor(offsets).int(), torch.tensor(counts).int())
    layer.row_tokens[::3] = torch.tensor([7, HUGE, -5, -1]).int().repeat(3)[:11]
    with emulated():
        out = torch.ops.capmoe.grouped_mlp(*layer.arguments(torch.bfloat16))
    assert out.shape == (32, 16)


def test_two_launches():
    with emulated() as record:
        torch.ops.capmoe.grouped_mlp(*Layer.make(torch.bfloat16, [9], 16, 16).arguments(torch.half))
    assert record.names == ["grouped_gemm_kernel"] * 2
