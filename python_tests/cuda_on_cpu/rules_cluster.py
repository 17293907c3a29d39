"""Rules for clusters: addresses in other blocks' shared memory, and the barrier of all threads."""

from __future__ import annotations

from .lower import Lowering
from .parse import SIZES
from .rules import rule
from .rules_mbarrier import only


@rule("mapa", allow="shared::cluster")
def mapa(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    registers = [low.value(operands[0], kind), low.value(operands[1], kind)]
    registers.append(low.value(operands[2], "b32"))
    low.emit("mapa", registers, SIZES[kind] == 8, "shared::cluster" not in parts)


@rule("getctarank", allow="shared::cluster")
def getctarank(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    registers = [low.value(operands[0], "b32"), low.value(operands[1], kind)]
    low.emit("getctarank", registers, SIZES[kind] == 8)


def cluster_barrier(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """barrier.cluster."""
    from .rules_warp import ALIGNED, emit_sync

    step = parts[2]
    orders = {"arrive": "release relaxed", "wait": "acquire"}[step]
    only(low, parts, f"cluster {step} aligned {orders}")
    if "aligned" in parts:
        return emit_sync(low, f"cluster.{step}.aligned", [], ALIGNED, "relaxed" in parts)
    low.emit(f"cluster.{step}", [], "relaxed" in parts)
