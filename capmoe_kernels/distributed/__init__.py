"""Expert parallelism over torch.distributed: bounded stragglers across devices."""

from .exchange import Dispatched, Handle
from .expert_parallel import ExpertParallel
from .overlap import OverlapPlan, overlap_plan
from .placement import Placement
from .watch import RankError

__all__ = [
    "Dispatched",
    "ExpertParallel",
    "Handle",
    "OverlapPlan",
    "Placement",
    "RankError",
    "overlap_plan",
]
