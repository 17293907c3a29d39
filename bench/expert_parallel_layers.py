"""The layers that ``bench.expert_parallel`` times, as callables, whole and phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.distributed import ExpertParallel, shard_experts, sharded_moe

from .expert_parallel_cases import SHARDED, Case, Setting

PHASES = ("gate", "dispatch", "experts", "waiting", "combine")


@dataclass(frozen=True, eq=False)
class Layer:
    """One setting on one rank.

    Attributes:
        step: the whole layer.
        phases: the same in parts, with the seconds of each; None where there are none to tell.
        sent: rows that this rank sends in an exchange of static shape, both ways; None where it
            sends the live ones only.
    """

    step: Callable[[], Tensor]
    phases: Callable[[], dict[str, float]] | None
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
    return Layer(
        lambda: sharded_moe(tokens, logits, shard, case.gating, max_tokens=most), phases=None
    )


def _expert_parallel(case: Case, setting: Setting, rank: int) -> Layer:
    tokens, logits = case.hidden_states[rank], case.router_logits[rank]
    experts = case.own_experts(rank)
    capacity = setting.capacity()
    parallel = ExpertParallel(
        None,
        case.experts.num_experts,
        gating=case.gating,
        capacity=capacity,
        hidden_size=tokens.shape[1],
        dtype=tokens.dtype,
        max_tokens=None if capacity is None else tokens.shape[0],
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
