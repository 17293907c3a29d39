"""Capacity-aware Mixture-of-Experts kernels: no expert holds more tokens than you allow.

routing = route(router_logits, Gating(top_k=8), Capacity(factor=1.5))
out = moe(hidden_states, router_logits, experts, Gating(top_k=8), Capacity(factor=1.5))
"""

from .backends import Backends, backends
from .bounds import expert_capacity
from .capacity import Capacity
from .experts import Experts
from .gating import Gating
from .layer import combine, dispatch, grouped_mlp, moe
from .routing import Routing, route, select

__version__ = "0.1.0"

__all__ = [
    "Backends",
    "Capacity",
    "Experts",
    "Gating",
    "Routing",
    "backends",
    "combine",
    "dispatch",
    "expert_capacity",
    "grouped_mlp",
    "moe",
    "route",
    "select",
]
