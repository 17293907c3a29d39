"""Expert parallelism over torch.distributed: bounded stragglers across devices."""

from .apply_placement import PlacedLayer, apply_placement
from .calibrate import Calibration, calibrate
from .costs import Costs, StepSeconds, step_seconds
from .exchange import Dispatched, Handle
from .expert_parallel import ExpertParallel
from .overlap import OverlapPlan, overlap_plan
from .place_experts import place_experts
from .placement import Placement
from .placement_plan import LayerPlan, PlacementPlan
from .shard_experts import shard_experts
from .sharded_moe import sharded_moe
from .simulation import simulate_loads
from .straggler import Load, StragglerReport, straggler
from .watch import RankError

__all__ = [
    "Calibration",
    "Costs",
    "Dispatched",
    "ExpertParallel",
    "Handle",
    "LayerPlan",
    "Load",
    "OverlapPlan",
    "PlacedLayer",
    "Placement",
    "PlacementPlan",
    "RankError",
    "StepSeconds",
    "StragglerReport",
    "apply_placement",
    "calibrate",
    "overlap_plan",
    "place_experts",
    "shard_experts",
    "sharded_moe",
    "simulate_loads",
    "step_seconds",
    "straggler",
]
