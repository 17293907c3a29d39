"""Capacity factors for each layer at a bounded loss: the work behind ``capmoe calibrate``.

    from capmoe_kernels.calibrate import CalibrateRequest, calibrate
    from capmoe_kernels.integrations.transformers import apply

    found = calibrate(CalibrateRequest(Path("olmoe"), [Path("texts")], out=Path("capacity.json")))
    apply(model, capacity="capacity.json")  # or capacity=found.capacities

Needs the ``cli`` and the ``placement`` extra (transformers and scipy).
"""

from __future__ import annotations

from .request import CalibrateRequest
from .run import Calibration, calibrate

__all__ = ["CalibrateRequest", "Calibration", "calibrate"]
