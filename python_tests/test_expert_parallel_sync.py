"""Where the host waits: nowhere with a bounded capacity, for the counts without one.

The layer runs on fake tensors, which have shapes but no values: what the host would have to wait
for, or size a buffer by, raises.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import capmoe_kernels as cm
from capmoe_kernels.distributed import Placement
from expert_parallel import Layer
from ranks import run_ranks

BOUNDED = [
    cm.Capacity(factor=1.0),
    cm.Capacity(limit=3, policy="random"),
    cm.Capacity(factor=1.5, expand="rank", extra=1, max_experts_per_token=2),
    cm.Capacity(factor=1.5, expand="local", local_experts=(0, 1)),
    cm.Capacity(factor=1.5, reroute_rounds=2),
]
COUNTED = [cm.Capacity(), cm.Capacity(factor=1.0, scope="device", experts_per_device=4)]
REPLICAS = Placement(((0, 1, 2, 3), (3, 4, 5, 6, 7)))


class Ended:
    """An exchange that moved nothing."""

    def wait(self, timeout=None):
        return True


def fake_layer(rank, layer):
    """Shape of what comes out, and the shapes that were exchanged."""
    ep = layer.build()
    hidden, logits, local = layer.hidden(rank), layer.logits(rank), layer.local_experts(rank)
    options = {"token_mask": torch.ones(len(hidden), dtype=torch.bool), "shared_expert": torch.sin}
    ep.moe(hidden, logits, local, **options)  # its constants are made by the first call
    shapes, real = [], dist.all_to_all_single

    def nothing(received, sent, *splits, **_):
        assert splits == (None, None)
        assert received.shape == sent.shape
        shapes.append(tuple(sent.shape))
        return Ended()

    dist.all_to_all_single = nothing
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = [mode.from_tensor(tensor) for tensor in (hidden, logits)]
            out = ep.moe(*fake, local, **options)
            return tuple(out.shape), shapes
    finally:
        dist.all_to_all_single = real


def bounded(rank):
    for capacity in BOUNDED:
        for placement in (None, REPLICAS):
            layer = Layer(capacity, (6, 11), placement=placement)
            shape, exchanged = fake_layer(rank, layer)
            assert shape == (layer.tokens[rank], layer.H)
            most, room = (4, 5)[placement is not None], layer.build().capacity_rows
            assert exchanged == 2 * [(2 * (1 + most * room), layer.H)]


def counted(rank):
    for capacity in COUNTED:
        with pytest.raises(DataDependentOutputException):
            fake_layer(rank, Layer(capacity, (6, 11)))


def both(rank):
    bounded(rank)
    counted(rank)


def test_where_the_host_waits():
    run_ranks(2, both)
