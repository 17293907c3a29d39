"""What ``apply`` refuses, before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..capacity import Capacity
from ..gating import Gating
from .blocks import MoeBlock, OwnRouter
from .ranks import check_ranks


def check_model(model: nn.Module, blocks: Sequence[MoeBlock]) -> None:
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        raise ValueError("set model.config.output_router_logits = False before apply")
    for block in blocks:
        if block.parts.experts.down_proj.device.type == "meta":
            raise ValueError(
                f"the weights of {block.name} must be in memory, they are on the meta device: load"
                " the model without offloading to the CPU or the disk"
            )


def check_block(
    block: MoeBlock, gating: Gating | None, capacities: Sequence[Capacity | None], num_ranks: int
) -> None:
    num_experts = block.parts.experts.num_experts
    check_ranks(num_ranks, num_experts)
    if gating is not None:
        gating.check_experts(num_experts)
    for capacity in capacities:
        if capacity is not None:
            capacity.check_experts(num_experts)
    if isinstance(block.parts, OwnRouter):
        _check_own_router(block, gating, capacities, num_ranks)


def _check_own_router(
    block: MoeBlock, gating: Gating | None, capacities: Sequence[Capacity | None], num_ranks: int
) -> None:
    """Its logits and its rule are unknown: some of its choice can be dropped, no more."""
    who = f"{block.name} was found by its shape and keeps its own router"
    if gating is not None:
        raise ValueError(f"gating must be None, {who}")
    if num_ranks > 1:
        raise ValueError(f"num_ranks must be 1, {who}")
    for capacity in capacities:
        if capacity is not None and (capacity.expand != "none" or capacity.reroute_rounds > 1):
            raise ValueError(f"capacity must not look for experts beyond the top-k, {who}")
