"""Expert parallelism over torch.distributed: bounded stragglers across devices."""

from .calibrate import Calibration, calibrate
from .costs import Costs, StepSeconds, step_seconds
from .placement import Placement
from .simulation import simulate_loads
from .straggler import Load, StragglerReport, straggler

__all__ = [
    "Calibration",
    "Costs",
    "Load",
    "Placement",
    "StepSeconds",
    "StragglerReport",
    "calibrate",
    "simulate_loads",
    "step_seconds",
    "straggler",
]
