"""What goes over the wire, counted: one payload of static shape, or exactly the rows there are."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

import capmoe_kernels as cm
from expert_parallel import Layer
from ranks import run_ranks

LOCAL = {"expand": "local", "local_experts": (0, 1)}


def sent_by(rank, layer):
    """[(bytes to each rank)] of every all-to-all of one layer, and the counts a fixed one holds."""
    exchanges, real = [], dist.all_to_all_single

    def counting(received, sent, of=None, to=None, **options):
        parts = sent.split(to) if to else sent.chunk(layer.world)
        exchanges.append([part.numel() * part.element_size() for part in parts])
        return real(received, sent, of, to, **options)

    ep = layer.build()
    dist.all_to_all_single = counting
    try:
        ep.moe(layer.hidden(rank), layer.logits(rank), layer.local_experts(rank))
    finally:
        dist.all_to_all_single = real
    return exchanges, kept_elsewhere(rank, layer)


def kept_elsewhere(rank, layer):
    """Rows for other ranks' experts."""
    own = set(layer.held.experts_of_rank[rank])
    counts = layer.routing(rank).tokens_per_expert.tolist()
    return sum(count for expert, count in enumerate(counts) if expert not in own)


def elsewhere(rank, sizes):
    return sum(size for other, size in enumerate(sizes) if other != rank)


def fixed(rank, layer):
    """Bytes of Expanded Drop over local experts are Token Drop's, and so are the rows in use."""
    drop, rows = sent_by(rank, layer)
    more = replace(layer, capacity=replace(layer.capacity, **LOCAL))
    expanded, expanded_rows = sent_by(rank, more)
    assert expanded == drop
    assert expanded_rows == rows
    own = slice(*more.own_capacity(rank).local_experts)
    extra = (more.routing(rank).tokens_per_expert - layer.routing(rank).tokens_per_expert)[own]
    # One dispatch, one combine; a header row, then two experts of C rows for each rank.
    capacity = cm.expert_capacity(max(layer.tokens), layer.E, layer.gating.top_k, 1.0)
    part = (1 + 2 * capacity) * layer.H * layer.dtype.itemsize
    assert drop == 2 * [4 * [part]]
    return int(extra.sum())


def counted(rank, layer):
    """What leaves the rank are the rows kept elsewhere, and back come as many."""
    row = layer.H * layer.dtype.itemsize
    sizes = []
    for options in ({}, LOCAL):
        one = replace(layer, capacity=replace(layer.capacity, **options))
        (counts, there, back), rows = sent_by(rank, one)
        assert counts == 4 * [2 * 4]
        assert elsewhere(rank, there) == rows * row
        sizes.append((elsewhere(rank, there), elsewhere(rank, back), there[rank]))
    (drop, returned, own), (expanded, expanded_returned, more) = sizes
    assert (expanded, expanded_returned) == (drop, returned)
    return more - own


def test_extra_rows_of_expanded_drop_never_cross_the_wire():
    layer = Layer(cm.Capacity(factor=1.0))
    assert sum(run_ranks(4, fixed, layer)) > 0


def test_counted_rows():
    layer = Layer(cm.Capacity(factor=1.0, scope="device", experts_per_device=2))
    assert sum(run_ranks(4, counted, layer)) > 0
    layer = Layer(cm.Capacity(factor=1.0), exchange="counted")
    assert sum(run_ranks(4, counted, layer)) > 0


def test_header_takes_as_many_rows_as_counts_need():
    layer = Layer(cm.Capacity(limit=1), (3, 3), H=1, F=1, dtype=torch.bfloat16)
    # Four experts' counts are 16 bytes: eight rows of one bfloat16, then four of capacity one.
    assert run_ranks(2, header, layer) == [2 * [2 * [24]]] * 2


def header(rank, layer):
    return sent_by(rank, layer)[0]
