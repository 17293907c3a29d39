"""Processes of a gloo group that run sharded_moe on many cases, for its tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import capmoe_kernels as cm
from capmoe_kernels.distributed import shard_experts, sharded_moe
from cases import make_experts, normal, router_logits

TOP2 = cm.Gating(2)


@dataclass(frozen=True)
class Layer:
    """A layer, and how many tokens each rank has: ``tokens`` in turn."""

    tokens: tuple[int, ...] = (13, 0, 21, 5)
    E: int = 6
    H: int = 24
    F: int = 19
    dtype: torch.dtype = torch.float32
    style: str = "gaussian"
    gating: cm.Gating = TOP2
    capacity: cm.Capacity | None = None
    experts: dict = field(default_factory=dict)
    pack: bool = False
    masked: bool = False
    whole: bool = False  # only -1 and 1, so that every sum is exact
    max_tokens: int | None = None
    nan: bool = False  # in rank 1's first token

    def make_experts(self):
        made = make_experts(self.E, self.H, self.F, self.dtype, **self.experts)
        if self.whole:
            for weights in (made.gate_up_proj, made.down_proj, made.gate_up_bias, made.down_bias):
                if weights is not None:
                    weights.sign_()
        return made

    def tokens_of(self, rank):
        """(x, logits, options) of a rank."""
        count = self.tokens[rank]
        x = normal((count, self.H), self.dtype, seed=10 + rank)
        x = x.sign() if self.whole else x
        x[:1] = torch.nan if self.nan and rank == 1 else x[:1]
        logits = router_logits(count, self.E, self.style, seed=20 + rank)
        mask = {"token_mask": torch.arange(count) % 3 != rank % 3} if self.masked else {}
        return x, logits, mask


class CountWork(TorchDispatchMode):
    """Multiplications of every grouped_mlp within it and bytes sent, both from shapes."""

    def __init__(self, world):
        super().__init__()
        self.others = world - 1
        self.multiplications = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.capmoe.grouped_mlp.default:
            _, up, down, _, _, _, counts, *_ = args
            per_row = up[0].numel() + down[0].numel()
            self.multiplications += int(counts.sum()) * per_row
        if func is torch.ops.c10d._allgather_base_.default:
            self.bytes += args[1].nbytes * self.others  # its own rows to each
        if func is torch.ops.c10d._reduce_scatter_base_.default:
            self.bytes += args[0].nbytes * self.others  # each one's rows to it
        return func(*args, **(kwargs or {}))


def outcome(layer, rank, world):
    """(output, multiplications, bytes sent) of one rank."""
    shard = shard_experts(layer.make_experts(), rank, world)
    shard = shard.pack() if layer.pack else shard
    x, logits, options = layer.tokens_of(rank)
    with CountWork(world) as work:
        out = sharded_moe(
            x,
            logits,
            shard,
            layer.gating,
            layer.capacity,
            max_tokens=layer.max_tokens,
            **options,
        )
    return out, work.multiplications, work.bytes


def refused(rank, world):
    """What the ranks say when rank 1 calls with another hidden size, and with the wrong shard."""
    said = []
    layer = Layer(H=24 if rank == 0 else 32, tokens=(4,) * world)
    try:
        outcome(layer, rank, world)
    except ValueError as error:
        said.append(str(error))
    layer = Layer(experts={"bias": True})
    x, logits, _ = layer.tokens_of(rank)
    if rank > 0:
        try:
            sharded_moe(x, logits, shard_experts(layer.make_experts(), 0, world), layer.gating)
        except ValueError as error:
            said.append(str(error))
    return said


def run_rank(rank, world, layers, folder):
    """Entry of a process: the outcome of every layer, twice, and of the wrong calls."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    found = {name: [outcome(layer, rank, world) for _ in "12"] for name, layer in layers.items()}
    torch.save((found, refused(rank, world)), f"{folder}/{rank}")
    dist.destroy_process_group()
