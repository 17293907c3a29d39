"""Triton's kernels with a million tokens, and memory beyond 2**31 elements."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from cases import generator, normal
from checks import same_bits
from mlp_layer import Groups
from triton_grouped_mlp import Layer, emulated  # skips where there is no Triton

MILLION = 2**20
BEYOND = 2**27 + 8  # rows of 16: a few more than 2**31 elements have
ops = torch.ops.capmoe
BF16 = torch.bfloat16


def test_gate():
    logits = normal((MILLION, 8), BF16)
    options = (1, "softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0)
    with emulated():
        ids, *floats = ops.gate(logits, None, *options)
    expected, *truths = reference.gate(logits, None, *options)
    assert ids.equal(expected)
    for got, truth in zip(floats, truths, strict=True):
        torch.testing.assert_close(got, truth, rtol=3e-6, atol=0)


@pytest.mark.parametrize("factor", [None, 1.0])
def test_select(factor):
    ids = torch.randint(4, (MILLION, 1), generator=generator(0)).int()
    weights = torch.rand(MILLION, 1, generator=generator(1))
    with emulated():
        got = cm.select(ids, weights, 4, cm.Capacity(factor))
    for out, expected in zip(got, cm.select(ids, weights, 4, cm.Capacity(factor)), strict=True):
        assert same_bits(out, expected)


def test_dispatch_and_combine():
    x, weights = normal((MILLION, 16), BF16), normal((MILLION, 1))
    order = torch.randperm(MILLION, generator=generator(0)).int()
    with emulated():
        y = ops.dispatch(x, order)
        out = ops.combine(x, order[:, None], weights)
    expected = x[order.long()]
    assert same_bits(y, expected)
    assert same_bits(out, (weights * expected.float()).bfloat16())


def test_grouped_mlp(poison):
    """A million rows are allocated; those of experts, at both ends, are fewer, to save time."""
    layer = Layer.make(BF16, [5, 0, 3], 16, 16, "relu_no_mul")
    many = 2**14
    layer.groups = Groups(
        torch.tensor([0, many, MILLION - many + 3, MILLION]).int(),
        torch.tensor([many - 1, 0, many - 3]).int(),
    )
    layer.x = torch.full((MILLION, 16), torch.nan, dtype=BF16)
    layer.x[layer.groups.live()] = normal((2 * many - 4, 16), BF16)
    layer.check()


def test_beyond_32_bits():
    """Of tensors of 4 GiB, which nobody fills, the rows at their end."""
    far = torch.empty(BEYOND, 16, dtype=BF16)
    far[-8:] = normal((8, 16), BF16)
    rows = torch.tensor([BEYOND - 1, BEYOND - 8, BEYOND - 3, BEYOND - 8]).int()
    near = far[rows.long()]
    layer = Layer.make(BF16, [4], 16, 16)
    layer.x, layer.row_tokens = near, torch.arange(4, dtype=torch.int32)
    expected = layer.check()
    layer.x, layer.row_tokens = far, rows
    assert same_bits(layer.run(), expected)
    with emulated():
        assert same_bits(ops.dispatch(far, rows), near)
        assert same_bits(ops.combine(far, rows[:, None], torch.ones(4, 1)), near)
        options = (1, "softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0)
        logits = torch.as_strided(far, (2, 16), (16 * (BEYOND - 1), 1))
        logits[0] = 0
        assert ops.gate(logits, None, *options)[0].tolist() == [[0], [int(logits[1].argmax())]]


def test_experts_beyond_32_bits():
    """Weights of 4 GiB, of which nobody fills any but the last expert's."""
    small = Layer.make(BF16, [4], 256, 1024)
    experts = 2**12 + 8
    gate_up = torch.empty(experts, 2048, 256, dtype=BF16)
    down = torch.empty(experts, 256, 1024, dtype=BF16)
    assert gate_up[-1].storage_offset() > 2**31
    gate_up[-1], down[-1] = small.gate_up[0], small.down[0]
    counts = torch.zeros(experts, dtype=torch.int32)
    counts[-1] = 4
    offsets = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()])
    large = replace(small, gate_up=gate_up, down=down, groups=Groups(offsets, counts))
    assert same_bits(large.run(), small.check())
