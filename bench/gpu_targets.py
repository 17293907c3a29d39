"""What gpu_counts holds the kernels against: instructions and sectors that each op may need.

The bounds are the least that other packages' kernels were counted to need in the same emulator, or
a part of it, with the SASS estimate where there is one.
"""

from __future__ import annotations

from .gpu_roofline import Shape

GATE = {64: 300, 128: 450, 8: 12}  # per token, by experts, from 64 tokens on
GATE_ONE = {64: 600, 128: 800, 8: 250}  # a call with one token
SLOTS = {1: 400, 64: 10, 1024: 4, 4096: 3}  # per pair, by tokens; for one token the whole call
SLOTS_BOUND = {4096: 8}  # with a capacity that binds
GEMM_PER_HMMA = 3.2
GEMM_ROWS = 64  # per expert: with fewer the weights' bytes decide
SECTORS = {"gate": 1.3, "dispatch": 1.05, "combine": 1.02}


def slots_target(shape: Shape, tokens: int, factor: float | None) -> float | None:
    """Per pair."""
    if factor is not None:
        return SLOTS_BOUND.get(tokens)
    return SLOTS[tokens] / (shape.top_k if tokens == 1 else 1)


def target(op: str, shape: Shape, tokens: int, factor: float | None) -> float | None:
    """Warp instructions per token, pair or HMMA; None where nobody has set one."""
    gate = (GATE_ONE if tokens == 1 else GATE).get(shape.experts)
    slots = slots_target(shape, tokens, factor)
    if op == "gate":
        return gate
    if op in ("select", "mark+select"):  # the latter of a caller's own top-k
        return slots
    if op == "route":  # gate and select in one
        return None if gate is None or slots is None else gate + shape.top_k * slots
    if op == "dispatch":
        return 100 * shape.hidden / 2048
    if op == "combine":
        return 1500 * shape.hidden * shape.top_k / (2048 * 8)
    assert op == "grouped_mlp", op
    enough = tokens * shape.top_k >= GEMM_ROWS * shape.experts
    return GEMM_PER_HMMA if enough else None
