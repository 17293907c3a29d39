"""What ``apply`` refuses, before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..capacity import Capacity
from ..gating import Gating
from .blocks import MoeBlock, OwnRouter
from .ranks import check_ranks

# PEFT's base classes: of adapters on a module or parameter, and of whole modules it replaces.
_ADAPTER, _REPLACEMENT = "BaseTunerLayer", "AuxiliaryTrainingWrapper"


def check_gating(gating: Gating | None) -> None:
    if gating is not None and not isinstance(gating, Gating):
        hint = ": give it by name, capacity=" if isinstance(gating, Capacity) else ""
        raise TypeError(f"gating must be a Gating or None, got {type(gating).__name__}{hint}")


def check_model(model: nn.Module, blocks: Sequence[MoeBlock]) -> None:
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        raise ValueError("set model.config.output_router_logits = False before apply")
    for block in blocks:
        check_placement(block)


def check_placement(block: MoeBlock) -> None:
    """Refuse weights that are elsewhere, or in more than one place."""
    experts = block.parts.experts
    if experts.down_proj.device.type == "meta":
        raise ValueError(
            f"the weights of {block.name} must be in memory, they are on the meta device: load"
            " the model without offloading to the CPU or the disk"
        )
    devices = sorted({str(parameter.device) for parameter in block.module.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"the weights of {block.name} must be on one device, they are on {', '.join(devices)}:"
            " device_map must not split a block"
        )
    for module in block.module.modules():
        if getattr(module, "_is_expert_parallel", False):
            raise ValueError(
                f"{block.name} is split over ranks by Transformers' own expert parallelism: load"
                " the model without it"
            )


def check_adapters(model: nn.Module, name: str = "") -> None:
    """Refuse PEFT's adapters on experts and routers: blocks that are taken over don't run them.

    A block is told by its child ``experts``; adapters of its shared experts are run.

    Args:
        model: as PEFT has made it.
        name: of ``model``'s only block, where it is not in its own model.
    """
    paths = dict(model.named_modules())
    for path, module in paths.items():
        inherited = {base.__name__ for base in type(module).__mro__}
        if not inherited & {_ADAPTER, _REPLACEMENT}:
            continue
        around = _REPLACEMENT in inherited and any(_is_block(part) for part in module.modules())
        if around or _in_block(paths, path):
            raise ValueError(
                f"{name or path} has an adapter of PEFT ({type(module).__name__}), and blocks taken"
                " over do not run adapters of experts or routers: merge_and_unload() it first"
            )


def _in_block(paths: dict[str, nn.Module], path: str) -> bool:
    """Whether the module ``path`` is in a block, its shared experts aside."""
    parts = path.split(".")
    for depth in range(len(parts)):
        if _is_block(paths[".".join(parts[:depth])]) and not parts[depth].startswith("shared"):
            return True
    return False


def _is_block(module: nn.Module) -> bool:
    return "experts" in module._modules


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
