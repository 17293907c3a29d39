"""Made-up loads for more devices than one has: log-normal popularity of experts.

Measured loads fit a log-normal best; everything made from this is a simulation and says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import require_int


def simulate_loads(
    num_experts: int,
    top_k: int,
    devices: int,
    tokens: int,
    skew: float,
    steps: int = 1,
    seed: int = 0,
) -> Tensor:
    """Pairs that every source rank asks of every expert.

    An expert's popularity is ``exp(skew * z)``, z normal and fresh in each step, the same for all
    ranks. A token draws ``top_k`` different experts, one after another, by popularity.

    Args:
        num_experts, top_k, devices: E, k and S.
        tokens: of each source rank.
        skew: of the log-normal, >= 0; 0 is even but for chance.
        steps: L.
        seed: of all random numbers.

    Returns:
        [L, S, E] int64.
    """
    require_int("num_experts", num_experts, minimum=1)
    require_int("top_k", top_k, minimum=1, maximum=num_experts)
    for name, value in (("devices", devices), ("tokens", tokens), ("steps", steps)):
        require_int(name, value, minimum=1)
    if not 0 <= skew < float("inf"):
        raise ValueError(f"skew must be >= 0, got {skew}")
    random = torch.Generator().manual_seed(seed)
    out = torch.empty(steps, devices, num_experts, dtype=torch.int64)
    for step in range(steps):
        popularity = (skew * torch.randn(num_experts, generator=random)).exp()
        for rank in range(devices):
            # Whose exponential clock rings first is drawn first: a draw without replacement.
            clocks = torch.empty(tokens, num_experts).exponential_(generator=random)
            ids = (popularity / clocks).topk(top_k, dim=1, sorted=False).indices
            out[step, rank] = torch.bincount(ids.flatten(), minlength=num_experts)
    return out
