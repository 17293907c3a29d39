"""The grouped MLP's CUDA kernels, executed without a GPU: values, memory and races."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from checks import same_bits

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

from cuda_grouped_mlp import ACTIVATIONS, GATINGS, SAMPLE_COUNTS, TILES, Layer, dtypes, every_tile


@every_tile
def test_activations(tile, dtype):
    """Every activation in some gating, with and without biases and a gather, in two schedules."""
    for i, activation in enumerate(ACTIVATIONS):
        gating = "interleaved" if activation == "swigluoai" else GATINGS[i % 3]
        options = {"bias": i % 2 == 0, "gather": i in (1, 2)}
        layer = Layer.make(dtype, SAMPLE_COUNTS[tile], 40, 24, activation, gating, **options)
        layer.check(tile, seed=3 * (i % 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # float16 overflows
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(dtype, activation):
    """Projections to about +-100: clamps, tails, overflow of exp; gated and plain."""
    for gating in GATINGS[activation == "swigluoai" : 2]:
        layer = Layer.make(dtype, [9, 4], 16, 24, activation, gating)
        layer.gate_up *= 30
        layer.check("Few")


@dtypes
@pytest.mark.parametrize(
    ("hidden", "inner"), [(8, 24), (24, 8), (40, 136), (136, 40), (100, 33), (33, 100), (1, 1)]
)
def test_tails(dtype, hidden, inner):
    """Sizes that are no whole tile, nor, for the last three, whole chunks of 16 bytes."""
    aligned = hidden % 8 == 0 and inner % 8 == 0
    for tile in ["Few", "Some", "Many"] if aligned else ["Unaligned"]:
        for i, gating in enumerate(GATINGS):
            Layer.make(dtype, [5, 0, 18], hidden, inner, "silu", gating, bias=i == 1).check(tile)


def test_aligned_and_unaligned_agree():
    """A size that both take: the same bits, since both sum in the same order."""
    layer = Layer.make(torch.bfloat16, [5, 0, 40], 72, 40, bias=True)
    for got, expected in zip(layer.run("Unaligned")[:2], layer.run("Some")[:2], strict=True):
        assert same_bits(got, expected)


@dtypes
def test_interleaved_is_concat_shuffled(dtype):
    concat = Layer.make(dtype, [5, 0, 18], 40, 24, bias=True)
    order = torch.arange(48).view(2, 24).t().reshape(-1)
    interleaved = replace(
        concat,
        gate_up=concat.gate_up[:, order].contiguous(),
        gate_up_bias=concat.gate_up_bias[:, order].contiguous(),
        gating="interleaved",
    )
    assert same_bits(interleaved.run("Some")[1], concat.run("Some")[1])


@every_tile
def test_bits_depend_on_nothing_else(tile, dtype):
    """Grids, schedules, and neighbours with NaN: a row's bits are its own."""
    layer = Layer.make(dtype, [9, 0, 21], 72, 40)
    first = layer.check(tile, grid=1)[1]
    live = layer.groups.live()
    for grid, seed in [(2, 0), (40, 3)]:
        assert same_bits(layer.run(tile, grid=grid, seed=seed)[1][live], first[live])
    layer.x[4] = float("nan")
    layer.gate_up[1] = float("nan")
    spoilt = layer.run(tile)[1]
    assert spoilt[4].isnan().all()
    live[4] = False
    assert same_bits(spoilt[live], first[live])


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    "counts", [[0, 0, 0], [0, 0, 150, 0], [1], [64, 0, 0], [0, 0, 129], [7, 530, 3]]
)
def test_counts(tile, counts):
    """No rows, one expert with all, whole tiles and one more, more tiles than go together."""
    Layer.make(torch.bfloat16, counts, 16, 136).check(tile)


@pytest.mark.parametrize("experts", [127, 128, 129, 300, 4096])
def test_many_experts(experts):
    """More experts than threads: a few with rows, at both ends and between."""
    counts = [0] * experts
    for e in {0, 3, experts // 2, experts - 2, experts - 1}:
        counts[e] = 1 + e % 19
    Layer.make(torch.float16, counts, 8, 8).check("Few")


@dtypes
def test_long_sums(dtype):
    """A float32 chain of 2048 would be further from the truth than the rule allows."""
    Layer.make(dtype, [5], 2048, 40).check("Few")


def test_identity_in_float32_is_exact():
    eye = torch.eye(40).expand(2, 40, 40).contiguous()
    layer = Layer.make(torch.float32, [9, 4], 40, 40, "relu", "none")
    layer.x = layer.x.abs()
    live = layer.groups.live()
    y = replace(layer, gate_up=eye, down=eye).run("Few")[1]
    assert y[live].equal(layer.x[live])
