"""Integers on the device that nobody has looked at: no kernel leaves its buffers for them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import layer as layer_module
from capmoe_kernels import routing as routing_module
from cases import make_experts, normal, router_logits
from checks import assert_close_to_truth, same_bits

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

from cuda_grouped_mlp import Groups, Layer, every_tile
from cuda_on_cpu import Const, emulate
from cuda_on_cpu.runtime import operators as emulated
from cuda_on_cpu.runtime.record import recording
from cuda_sources import compiled, per_sources

LEAST, MOST = -(2**31), 2**31 - 1
ROWS = 40
# (first row, count) of experts, what is left of each in a buffer of ROWS rows
STRANGE = [
    ((0, 5), (0, 5)),
    ((-1, 7), (0, 0)),
    ((LEAST, MOST), (0, 0)),
    ((5, -3), (0, 0)),
    ((6, LEAST), (0, 0)),
    ((MOST, MOST), (0, 0)),
    ((ROWS, 1), (0, 0)),
    ((9, 0), (0, 0)),
    ((7, 20), (7, 20)),
    ((33, MOST), (33, 7)),
]


def groups_of(places):
    """Groups of (first row, count), in a buffer of ROWS rows."""
    offsets = [first for first, _ in places]
    counts = [count for _, count in places]
    ints = {"dtype": torch.int32}
    return Groups(torch.tensor([*offsets, ROWS], **ints), torch.tensor(counts, **ints), ROWS)


def layer_in(places, dtype, gather=False, hidden=24, inner=40):
    """A layer whose experts have these places."""
    made = Layer.make(dtype, [ROWS] + [0] * (len(places) - 1), hidden, inner, gather=gather)
    return replace(made, groups=groups_of(places))


@every_tile
def test_strange_offsets_and_counts(tile, dtype):
    """Rows inside the buffer are computed as if the rest had not been asked for."""
    asked, left = zip(*STRANGE, strict=True)
    layer = layer_in(asked, dtype)
    honest = replace(layer, groups=groups_of(left))
    _, expected, _ = honest.check(tile)
    for seed in (0, 3):
        assert same_bits(layer.run(tile, seed=seed)[1], expected)


@every_tile
@pytest.mark.parametrize("every", [(0, MOST), (0, ROWS), (5, ROWS), (-5, MOST)], ids=str)
def test_experts_that_share_rows(tile, dtype, every):
    """Of equal weights, so that all write the same: more blocks of rows than the buffer has."""
    layer = layer_in([every] * 7, dtype)
    for weights in (layer.gate_up, layer.down):
        weights.copy_(weights[0].clone())
    y = layer.run(tile)[1]
    honest = replace(layer, groups=groups_of([(0, 0)] * 6 + [every]))
    computed = ~y.isnan().any(1)
    assert same_bits(y[computed], honest.run(tile)[1][computed])
    assert computed.any() == (every[0] >= 0)


@every_tile
def test_strange_tokens(tile, dtype):
    """A row without a token of its own is some other's; its neighbours do not see it."""
    layer = layer_in([(0, 9), (9, 12)], dtype, gather=True)
    expected = layer.check(tile)[1]
    strange = [7, 8, -1, LEAST, MOST]  # of 7 tokens
    layer.row_tokens[2 : 2 + len(strange)] = torch.tensor(strange, dtype=torch.int32)
    y = layer.run(tile)[1]
    own = layer.groups.live()
    own[2 : 2 + len(strange)] = False
    assert same_bits(y[own], expected[own])
    assert not y[layer.groups.live()].isnan().any()


LIST = """
#include "grouped_gemm_tile.cuh"
using namespace capmoe::cuda;
extern "C" __global__ void list(const int32_t* offsets, const int32_t* counts, int experts,
                                int rows, int* out) {
  extern __shared__ __align__(16) char shared[];
  auto* table = reinterpret_cast<Pieces::Expert*>(shared);
  list_experts<4>(offsets, counts, experts, rows, 16, table);
  for (int e = threadIdx.x; e <= experts; e += 128) {
    out[3 * e] = table[e].first_block;
    out[3 * e + 1] = e < experts ? table[e].row : 0;
    out[3 * e + 2] = e < experts ? table[e].rows : 0;
  }
}
"""


@per_sources
def list_kernel():
    return emulate(compiled(LIST), "list")


@pytest.mark.parametrize("rows", [0, 1, 100, 2**20, 2**30 - 1])
@pytest.mark.parametrize("experts", [1, 31, 128, 129, 700])
def test_blocks_are_never_more_than_a_buffer_has(experts, rows):
    """Every expert asks for everything, more than 32 bits hold, or for what is drawn."""
    generator = torch.Generator().manual_seed(experts)
    drawn = torch.randint(LEAST, MOST, (2, experts + 1), generator=generator).int()
    all_of_it = torch.tensor([0, MOST], dtype=torch.int32).unsqueeze(1).repeat(1, experts + 1)
    for offsets, counts in (drawn, all_of_it, torch.stack([all_of_it[0], drawn[1]])):
        out = torch.full((experts + 1, 3), -7, dtype=torch.int32)
        shared = (experts + 1) * 12 + 16
        given = (Const(offsets.contiguous()), Const(counts[:-1].contiguous()))
        list_kernel()[1, 128, shared](*given, experts, rows, out)
        most, blocks = rows // 16 + min(rows, experts), 0
        for e, (first, row, own) in enumerate(out.tolist()):
            assert first == blocks
            if e == experts:
                break
            start, count = offsets[e].item(), counts[e].item()
            inside = max(0, min(start + count, rows) - start) if 0 <= start <= rows else 0
            assert own == (inside if count > 0 else 0)
            assert own == 0 or row == start
            assert 0 <= row <= rows - own
            blocks = min(blocks + -(-own // 16), most)


@pytest.fixture
def cuda():
    """Within it ops run their CUDA kernels, of which the emulator has nothing to say."""
    with emulated.UseEmulatedCuda(), recording() as record:
        yield
    assert record.warnings == []


def through_the_op(layer, matrices, groups, row_tokens):
    places = (groups.offsets, groups.counts, row_tokens, layer.activation, "concat")
    return torch.ops.capmoe.grouped_mlp(layer.x, *matrices, None, None, *places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gather", [False, True])
def test_the_operator(cuda, dtype, gather):
    """Whatever a Routing made by hand says; rows of the buffer that are honest are right."""
    asked, left = zip(*STRANGE, strict=True)
    layer = layer_in(asked, dtype, gather)
    matrices, honest = (layer.gate_up, layer.down), groups_of(left)
    tokens = layer.row_tokens
    out = through_the_op(layer, matrices, layer.groups, tokens)
    live = honest.live()
    assert same_bits(out[live], through_the_op(layer, matrices, honest, tokens)[live])
    same = replace(layer, groups=honest).reference(dtype)
    truth = replace(layer, groups=honest).reference(torch.float64)
    assert_close_to_truth(out[live], truth[live], same[live])
    if gather:
        strange = tokens.clone()
        strange[1::3] = torch.tensor([7, LEAST, MOST, -1])[torch.arange(len(strange[1::3])) % 4]
        kept = live & (strange == tokens)
        again = through_the_op(layer, matrices, layer.groups, strange)
        assert same_bits(again[kept], out[kept])
        no_tokens = replace(layer, x=layer.x[:0])
        assert through_the_op(no_tokens, matrices, layer.groups, strange).shape == out.shape


LAYERS = [
    (5, cm.Capacity()),  # routed by one block
    (5, cm.Capacity(1.0)),
    (300, cm.Capacity()),  # by blocks that stand apart
    (300, cm.Capacity(1.0, expand="rank", extra=1)),
]


@pytest.mark.parametrize("num_rows", [0, 1, 7, 300])
@pytest.mark.parametrize(("tokens", "capacity"), LAYERS)
def test_a_layer_of_too_few_rows(cuda, tokens, capacity, num_rows):
    """What does not fit is dropped; the rest is right."""
    x, logits, gating = normal((tokens, 16)), router_logits(tokens, 8), cm.Gating(2)
    experts = make_experts(8, 16, 8)
    with mock.patch.object(layer_module, "moe_rows", return_value=num_rows):
        out = cm.moe(x, logits, experts, gating, capacity)
    routing = cm.route(logits, gating, capacity)
    y = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
    rows = torch.where(routing.rows < num_rows, routing.rows, -1)
    assert same_bits(out, cm.combine(y, routing._replace(rows=rows)))


@pytest.mark.parametrize("num_rows", [0, 1, 7, 300])
@pytest.mark.parametrize(("tokens", "capacity"), LAYERS)
@pytest.mark.parametrize("alignment", [1, 8])
def test_select_with_too_few_rows(cuda, tokens, capacity, num_rows, alignment):
    """Numbers are those of a buffer that is large enough, which row_tokens is the beginning of."""
    capacity = replace(capacity, expand="none", extra=0)
    ids, weights, _ = gate_of(router_logits(tokens, 8))
    expected = cm.select(ids, weights, 8, capacity, row_alignment=alignment)
    with mock.patch.object(routing_module, "num_rows_of", return_value=num_rows):
        got = cm.select(ids, weights, 8, capacity, row_alignment=alignment)
    first = min(num_rows, len(expected.row_tokens))
    assert same_bits(got.row_tokens[:first], expected.row_tokens[:first])
    assert (got.row_tokens[first:] == -1).all()
    for name in set(expected._fields) - {"row_tokens"}:
        assert same_bits(getattr(got, name), getattr(expected, name)), name


def gate_of(logits):
    return torch.ops.capmoe.gate(
        logits, None, 2, "softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0
    )


def test_select_of_more_rows_than_numbers_can_name(cuda):
    """Offsets wrap around; what they are then used for stays inside."""
    tokens = 4000
    ids = torch.arange(tokens, dtype=torch.int32).unsqueeze(1)
    with mock.patch.object(routing_module, "num_rows_of", return_value=50):
        got = cm.select(ids, torch.ones(tokens, 1), tokens, row_alignment=2**20)
    assert (got.tokens_per_expert == 1).all()
    assert (got.expert_offsets < 0).any()
    assert got.row_tokens[0] == 0


def test_select_of_an_expert_beyond_its_padded_rows(cuda):
    ids = torch.zeros(60, 1, dtype=torch.int32)
    with mock.patch.object(routing_module, "num_rows_of", return_value=8):
        got = cm.select(ids, torch.ones(60, 1), 1, layout="padded")
    assert got.row_tokens.tolist() == list(range(8))
