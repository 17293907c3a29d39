"""The device that a command's ``--device`` names."""

from __future__ import annotations

import torch

from .errors import UsageError


def choose_device(name: str) -> torch.device:
    """Raise UsageError where there is no such device."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise UsageError(f"--device {name}: must be cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each build has its own
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device
