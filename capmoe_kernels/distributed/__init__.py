"""Expert parallelism over torch.distributed: bounded stragglers across devices."""

from .placement import Placement
from .shard_experts import shard_experts
from .sharded_moe import sharded_moe

__all__ = ["Placement", "shard_experts", "sharded_moe"]
