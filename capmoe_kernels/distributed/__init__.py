"""Expert parallelism over torch.distributed: bounded stragglers across devices."""

from .apply_placement import PlacedLayer, apply_placement
from .place_experts import place_experts
from .placement import Placement
from .placement_plan import LayerPlan, PlacementPlan
from .shard_experts import shard_experts
from .sharded_moe import sharded_moe

__all__ = [
    "LayerPlan",
    "PlacedLayer",
    "Placement",
    "PlacementPlan",
    "apply_placement",
    "place_experts",
    "shard_experts",
    "sharded_moe",
]
