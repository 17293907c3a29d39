"""MoEShard: the sum of all slices is the layer, every rank does the same work."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch
from torch import multiprocessing

import capmoe_kernels as cm
import oracle_mlp
import shard_ranks
from capmoe_kernels.distributed import shard_experts
from capmoe_kernels.distributed.shard_experts import shard_range
from cases import make_experts, normal, router_logits
from checks import assert_close_to_truth, same_bits
from shard_ranks import Layer

BIAS = {"bias": True}
LAYERS = {
    "uneven_tokens": Layer(),
    "bfloat16": Layer(dtype=torch.bfloat16, F=37, H=40),
    "float16": Layer(dtype=torch.float16, experts=BIAS),
    "packed_bfloat16": Layer(dtype=torch.bfloat16, F=70, pack=True, experts=BIAS),
    "packed_interleaved": Layer(pack=True, experts=BIAS | {"layout": "interleaved"}),
    "gpt_oss": Layer(
        experts=BIAS | {"activation": "swigluoai", "layout": "interleaved"},
        gating=cm.Gating(3, renormalize="topk"),
    ),
    "plain": Layer(experts=BIAS | {"activation": "relu2_no_mul"}, F=6),
    "one_neuron_each": Layer(F=4),
    "nobody_has_tokens": Layer(tokens=(0, 0, 0, 0)),
    "equal_tokens": Layer(tokens=(8, 8, 8, 8), max_tokens=8),
    "padded_to_more": Layer(max_tokens=32),
    "one_expert": Layer(style="one_expert", gating=cm.Gating(1)),
    "token_drop": Layer(style="skewed", capacity=cm.Capacity(factor=1.0), masked=True),
    "expanded_drop": Layer(
        style="skewed", capacity=cm.Capacity(1.0, expand="rank", extra=2), F=16, experts=BIAS
    ),
    "reroute": Layer(style="skewed", capacity=cm.Capacity(1.0, reroute_rounds=3)),
    "nothing_kept": Layer(capacity=cm.Capacity(factor=0.0)),
    "whole_float32": Layer(
        whole=True,
        gating=cm.Gating(1, renormalize="topk"),
        experts=BIAS | {"activation": "relu_no_mul"},
        F=23,
        pack=True,
    ),
    "whole_bfloat16": Layer(
        whole=True,
        dtype=torch.bfloat16,
        gating=cm.Gating(1, renormalize="topk"),
        experts=BIAS | {"activation": "relu_no_mul"},
    ),
}
CLEAN = Layer(tokens=(4, 3, 5, 2), capacity=cm.Capacity(1.0), experts=BIAS)
NAN = {"clean": CLEAN, "nan": replace(CLEAN, nan=True)}
every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(scope="module", params=[2, 4], ids=lambda world: f"{world}_ranks")
def ranks(request, tmp_path_factory):
    """What every rank found: a list by rank of (outcomes by layer, refusals).

    pytest-xdist's workers share one run of the processes: the first starts it, others wait.
    """
    world, base = request.param, tmp_path_factory.getbasetemp()
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = (base.parent / f"ranks-{run}-{world}") if run else base / f"ranks-{world}"
    done = folder / "done"
    try:
        folder.mkdir()
    except FileExistsError:
        ends = time.monotonic() + 120
        while not done.exists() and time.monotonic() < ends:
            time.sleep(0.1)
    else:
        try:
            layers = LAYERS | NAN
            multiprocessing.spawn(shard_ranks.run_rank, (world, layers, str(folder)), world)
        finally:
            done.touch()
    return [torch.load(folder / str(rank)) for rank in range(world)]


@every_layer
def test_sharded_is_unsharded(ranks, name):
    layer = LAYERS[name]
    experts = layer.make_experts()
    for rank, (found, _) in enumerate(ranks):
        out, *_ = found[name][0]
        x, logits, options = layer.tokens_of(rank)
        routing = cm.route(logits, layer.gating, layer.capacity, **options)
        assert out.dtype == x.dtype
        truth = oracle_mlp.moe(x, experts, routing)
        assert_close_to_truth(out, truth, oracle_mlp.same_dtype_moe(x, experts, routing))
        lonely = (routing.rows < 0).all(1)
        assert same_bits(out[lonely], torch.zeros_like(out[lonely]))


@every_layer
def test_twice_the_same_bits(ranks, name):
    for found, _ in ranks:
        (first, *_), (second, *_) = found[name]
        assert same_bits(first, second)


@pytest.mark.parametrize("name", ["whole_float32", "whole_bfloat16"])
def test_nothing_is_lost_where_sums_are_exact(ranks, name):
    layer = LAYERS[name]
    for rank, (found, _) in enumerate(ranks):
        x, logits, _ = layer.tokens_of(rank)
        expected = cm.moe(x, logits, layer.make_experts(), layer.gating)
        assert len(x) == 0 or 2 < expected.abs().max() <= 256  # which bfloat16 still holds
        assert same_bits(found[name][0][0], expected)


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if not layer.pack])
def test_every_rank_does_the_same_work(ranks, name):
    """All kept pairs times its neurons: no rank's work depends on which experts they chose."""
    layer = LAYERS[name]
    kept = 0
    for rank in range(len(ranks)):
        _, logits, options = layer.tokens_of(rank)
        routing = cm.route(logits, layer.gating, layer.capacity, **options)
        kept += int(routing.tokens_per_expert.sum())
    matrices = 2 if layer.experts.get("activation", "").endswith("_no_mul") else 3
    for rank, (found, _) in enumerate(ranks):
        start, stop = shard_range(layer.F, rank, len(ranks))
        assert found[name][0][1] == kept * matrices * layer.H * (stop - start)


def test_one_expert_for_all_costs_what_many_cost(ranks):
    one = [found["one_expert"][0][1] for found, _ in ranks]
    spread = [found["uneven_tokens"][0][1] for found, _ in ranks]
    assert [2 * work for work in one] == spread  # top-1 beside top-2 of as many tokens
    most = -(-19 // len(ranks))  # of 19 neurons; the others have one less
    assert min(one) * most == max(one) * (most - 1)


@every_layer
def test_bytes_are_those_of_the_docs(ranks, name):
    layer, others = LAYERS[name], len(ranks) - 1
    tokens = layer.max_tokens or max(layer.tokens[: len(ranks)])
    columns = cm.route(layer.tokens_of(0)[1], layer.gating, layer.capacity).rows.shape[1]
    width = layer.dtype.itemsize
    per_token = layer.H * width + 8 * columns + 4 * layer.H
    sizes = 40 if layer.max_tokens is None else 0
    for found, _ in ranks:
        assert found[name][0][2] == others * (tokens * per_token + sizes)


def test_nan_stays_with_its_token(ranks):
    for rank, (found, _) in enumerate(ranks):
        clean, out = found["clean"][0][0], found["nan"][0][0]
        bad = int(rank == 1)
        assert same_bits(out[bad:], clean[bad:])
        assert out[:bad].isnan().all()


def test_wrong_calls_are_refused_on_every_rank(ranks):
    for rank, (_, said) in enumerate(ranks):
        assert "must be called alike on every rank" in said[0]
        assert "[32, 4, 6, 2] on rank 1, [24, 4, 6, 2] on rank 0" in said[0]
        if rank:
            assert f"no down_bias on rank {rank}" in said[1]


@pytest.mark.parametrize("layout", ["concat", "interleaved", "plain"])
@pytest.mark.parametrize(("size", "world"), [(12, 1), (12, 3), (13, 3), (7, 7), (5, 4)])
def test_shards_are_the_experts_neurons(layout, size, world):
    """Rows of gate and up and columns of down, each on exactly one rank, in order."""
    plain = {"activation": "relu_no_mul"} if layout == "plain" else {"layout": layout}
    experts = make_experts(3, 8, size, bias=True, **plain)
    shards = [shard_experts(experts, rank, world) for rank in range(world)]
    sizes = [shard.intermediate_size for shard in shards]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    halves = 1 if layout == "plain" else 2
    dense, parts = experts.concat(), [shard.concat() for shard in shards]
    for name in ("gate_up_proj", "gate_up_bias"):
        cut = [getattr(part, name).chunk(halves, dim=1) for part in parts]
        joined = [torch.cat([c[half] for c in cut], dim=1) for half in range(halves)]
        assert torch.cat(joined, dim=1).equal(getattr(dense, name))
    assert torch.cat([part.down_proj for part in parts], dim=2).equal(experts.down_proj)
    assert shards[0].down_bias.equal(experts.down_bias)
    assert all(shard.down_bias is None for shard in shards[1:])


def test_a_shard_is_a_copy():
    experts = make_experts(1, 8, 6, bias=True)
    storages = {
        getattr(e, name).untyped_storage().data_ptr()
        for e in (experts, shard_experts(experts, 0, 1))
        for name in ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")
    }
    assert len(storages) == 8


def test_refused():
    experts = make_experts(2, 8, 3)
    with pytest.raises(ValueError, match="world must be from 1 to 3, got 4"):
        shard_experts(experts, 0, 4)
    with pytest.raises(ValueError, match="rank must be from 0 to 1, got 2"):
        shard_experts(experts, 2, 2)
    with pytest.raises(TypeError, match=r"experts must be capmoe_kernels.Experts, got int"):
        shard_experts(3, 0, 1)
    packed = experts.pack()
    if type(packed) is not cm.Experts:
        with pytest.raises(TypeError, match="shard them, then pack the shard"):
            shard_experts(packed, 0, 1)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_rounding_of_the_slices_in_bfloat16(world):
    """A slice's rows are rounded to bfloat16 before they are summed.

    A slice's row is about sqrt(world) times smaller than the whole one and so is its rounding;
    world of them come to the rounding of a whole row, in the mean square.
    """
    experts = make_experts(4, 96, 128, torch.bfloat16)
    x, logits = normal((64, 96), torch.bfloat16), router_logits(64, 4)
    routing = cm.route(logits, cm.Gating(2, renormalize="topk"))
    truth = oracle_mlp.moe(x, experts, routing)
    partial = torch.zeros(64, 96)
    for rank in range(world):
        rows = cm.grouped_mlp(cm.dispatch(x, routing), shard_experts(experts, rank, world), routing)
        partial += cm.combine(rows.float(), routing)
    whole = cm.combine(cm.grouped_mlp(cm.dispatch(x, routing), experts, routing), routing)
    error = (partial.bfloat16().double() - truth).square().mean().sqrt()
    before = (whole.double() - truth).square().mean().sqrt()
    assert error < 1.1 * before
