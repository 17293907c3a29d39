"""Expert parallelism over torch.distributed: bounded stragglers across devices."""

from .calibrate import Calibration, calibrate
from .costs import Costs, StepSeconds, step_seconds
from .exchange import Dispatched, Handle
from .expert_parallel import ExpertParallel
from .overlap import OverlapPlan, overlap_plan
from .placement import Placement
from .simulation import simulate_loads
from .straggler import Load, StragglerReport, straggler
from .watch import RankError

__all__ = [
    "Calibration",
    "Costs",
    "Dispatched",
    "ExpertParallel",
    "Handle",
    "Load",
    "OverlapPlan",
    "Placement",
    "RankError",
    "StepSeconds",
    "StragglerReport",
    "calibrate",
    "overlap_plan",
    "simulate_loads",
    "step_seconds",
    "straggler",
]
