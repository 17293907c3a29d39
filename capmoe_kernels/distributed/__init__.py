"""Expert parallelism over torch.distributed: bounded stragglers across devices."""

from .placement import Placement

__all__ = ["Placement"]
