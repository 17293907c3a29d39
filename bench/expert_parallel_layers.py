"""The layers that ``bench.expert_parallel`` times, as callables, whole and phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.distributed import ExpertParallel, shard_experts, sharded_moe

from .expert_parallel_cases import COUNTED, SHARDED, Case, Setting

PHASES = ("gate", "dispatch", "experts", "waiting", "combine")


@dataclass(frozen=True, eq=False)
class Layer:
    """One setting on one rank.

    Attributes:
        step: the whole layer.
        phases: the same in parts, with the seconds of each.
        sent: rows that this rank sends where exchanges have a static shape, both ways; None where
            it sends the live ones only.
    """

    step: Callable[[], Tensor]
    phases: Callable[[], dict[str, float]]
    sent: int | None = None


def make_layer(case: Case, setting: Setting, rank: int) -> Layer:
    """Collective: every rank makes the same one."""
    if setting == SHARDED:
        return _sharded(case, rank)
    return _expert_parallel(case, setting, rank)


def expected(case: Case, setting: Setting, rank: int) -> Tensor:
    """What the rank's tokens come to in one process that holds all experts."""
    capacity = setting.capacity()
    if capacity is not None and capacity.expand == "local":
        own = case.placement.experts_of_rank[rank]
        local = (own[0], own[-1] + 1)
        capacity = cm.Capacity(factor=setting.factor, expand="local", local_experts=local)
    tokens, logits = case.hidden_states[rank], case.router_logits[rank]
    return cm.moe(tokens, logits, case.experts, case.gating, capacity)


def _sharded(case: Case, rank: int) -> Layer:
    tokens, logits = case.hidden_states[rank], case.router_logits[rank]
    shard = shard_experts(case.experts, rank, case.num_ranks).pack()
    most = tokens.shape[0]
    everyone = case.hidden_states.flatten(0, 1).clone()
    of_all = cm.route(case.router_logits.flatten(0, 1), case.gating)
    x = cm.dispatch(everyone, of_all)

    def phases() -> dict[str, float]:
        """The parts by themselves; the choices, which also travel, are a small one."""
        clock = _Clock()
        cm.route(logits, case.gating)
        clock.lap("gate")
        dist.all_gather_single(everyone, tokens)
        clock.lap("dispatch")
        y = cm.grouped_mlp(x, shard, of_all)
        clock.lap("experts")
        dist.barrier()
        clock.lap("waiting")
        partial = cm.combine(y.float(), of_all)
        dist.reduce_scatter_single(partial.new_empty(tokens.shape), partial)
        clock.lap("combine")
        return clock.seconds

    float32_rows = torch.float32.itemsize // tokens.dtype.itemsize
    return Layer(
        lambda: sharded_moe(tokens, logits, shard, case.gating, max_tokens=most),
        phases,
        sent=(case.num_ranks - 1) * most * (1 + float32_rows),
    )


def _expert_parallel(case: Case, setting: Setting, rank: int) -> Layer:
    tokens, logits = case.hidden_states[rank], case.router_logits[rank]
    experts = case.own_experts(rank)
    capacity = setting.capacity()
    is_counted = capacity is None or setting.method == COUNTED
    parallel = ExpertParallel(
        None,
        case.experts.num_experts,
        gating=case.gating,
        capacity=capacity,
        hidden_size=tokens.shape[1],
        dtype=tokens.dtype,
        max_tokens=None if is_counted else tokens.shape[0],
        exchange="counted" if is_counted else "auto",
    )

    def phases() -> dict[str, float]:
        clock = _Clock()
        routing = parallel.route(logits)
        clock.lap("gate")
        dispatched = parallel.dispatch(tokens, routing)
        clock.lap("dispatch")
        y = parallel.run_experts(dispatched, experts)
        clock.lap("experts")
        dist.barrier()
        clock.lap("waiting")
        parallel.combine(y, dispatched)
        clock.lap("combine")
        return clock.seconds

    sent = None
    if parallel.capacity_rows is not None:
        slots = max(map(len, case.placement.experts_of_rank))
        sent = 2 * (case.num_ranks - 1) * slots * parallel.capacity_rows
    return Layer(lambda: parallel.moe(tokens, logits, experts), phases, sent)


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
