"""Rules for what lanes, warps and blocks do together: shuffles, votes, barriers, matrices."""

from __future__ import annotations

from .lower import Lowering
from .rules import TYPES, pair, rule, values
from .rules_cluster import cluster_barrier
from .rules_mbarrier import only

ALIGNED = -1  # in place of the operand that holds the member mask
CLUSTER = "cluster wait acquire release relaxed"


def emit_sync(low: Lowering, name: str, registers: list[int], mask: int, *immediates: int) -> None:
    low.emit(name, registers, *immediates, *[0] * (5 - len(immediates)), mask)


@rule("shfl", allow="sync up down bfly idx")
def shfl(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if parts[1] != "sync":
        raise low.unsupported("shfl without .sync")
    registers = [*pair(low, operands[0]), *values(low, "b32", operands[1:])]
    emit_sync(low, "shfl", registers, 5, ("up", "down", "bfly", "idx").index(parts[2]))


@rule("vote", allow="sync all any uni ballot")
def vote(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if "sync" not in parts:
        raise low.unsupported("vote without .sync")
    # CUB writes vote.ballot.sync: ptxas takes either order.
    mode = next(i for i, name in enumerate(("all", "any", "uni", "ballot")) if name in parts)
    p = operands[1]
    registers = [
        low.value(operands[0], "b32" if mode == 3 else "pred"),
        low.value(p.lstrip("!"), "pred"),
        low.value(operands[2], "b32"),
    ]
    emit_sync(low, "vote", registers, 2, mode, p.startswith("!"))


@rule("match", allow="sync any all")
def match(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = pair(low, operands[0])
    registers += [low.value(operands[1], parts[-1]), low.value(operands[2], "b32")]
    emit_sync(low, f"match.{parts[-1]}", registers, 3, parts[1] == "all")


@rule("redux", allow="sync add min max and or xor")
def redux(low: Lowering, parts: list[str], operands: list[str]) -> None:
    operation = ("add", "min", "max", "and", "or", "xor").index(parts[2])
    kind = "s32" if parts[-1] == "s32" else "u32"
    emit_sync(low, f"redux.{kind}", values(low, "b32", operands), 2, operation)


@rule("elect", allow="sync")
def elect(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [*pair(low, operands[0]), low.value(operands[1], "b32")]
    emit_sync(low, "elect", registers, 2)


@rule("activemask")
def activemask(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("activemask", [low.value(operands[0], "b32")])


@rule("bar", "barrier", allow=f"cta warp sync arrive red popc and or aligned {CLUSTER}")
def bar(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if parts[1] == "cluster":
        return cluster_barrier(low, parts, operands)
    only(low, parts, "cta warp sync arrive red popc and or aligned b32 u32 pred")
    parts = [part for part in parts if part != "cta"]
    if parts[1] == "warp":
        return emit_sync(low, "bar.warp", values(low, "b32", operands), 0)
    # "bar" is "barrier.aligned".
    mask = ALIGNED if parts[0] == "bar" or "aligned" in parts else 0
    result, predicate, negated = -1, -1, False
    mode = 0 if parts[1] == "sync" else 1
    if parts[1] == "red":
        mode = 2 + ("popc", "and", "or").index(parts[2] if parts[2] != "aligned" else parts[3])
        result = low.value(operands[0], "b32" if mode == 2 else "pred")
        negated = operands[-1].startswith("!")
        predicate = low.value(operands[-1].lstrip("!"), "pred")
        operands = operands[1:-1]
    identity = low.value(operands[0], "b32")
    threads = low.value(operands[1], "b32") if len(operands) > 1 else -1
    if mask != ALIGNED:
        full = low.constant(0xFFFFFFFF, "b32")
        registers = [identity, threads, result, predicate, full]
        return emit_sync(low, "barrier", registers, 4, mode, negated)
    emit_sync(low, "barrier", [identity, threads, result, predicate], ALIGNED, mode, negated)


@rule(*("ldmatrix", "stmatrix"), allow="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def matrix(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if parts[-1] != "b16":
        raise low.unsupported(f"matrices of {parts[-1]}")
    memory, vector = operands if parts[0] == "stmatrix" else reversed(operands)
    elements = low.split(vector[1:-1]) if vector.startswith("{") else [vector]
    register, offset, wide, _ = low.address(memory)
    registers = [register, *values(low, "b32", elements)]
    transposed = "trans" in parts
    emit_sync(low, parts[0], registers, ALIGNED, len(elements), transposed, offset, wide)


@rule("movmatrix", allow="sync aligned m8n8 trans")
def movmatrix(low: Lowering, parts: list[str], operands: list[str]) -> None:
    emit_sync(low, "matrix.transpose", values(low, "b32", operands), ALIGNED)


# Of m16n8kK: the K of each type of A and B, and what C and D may be.
FLOAT8, INTEGERS, NIBBLES = ("e4m3", "e5m2"), ("s8", "u8"), ("s4", "u4")
SHAPES = {
    "f16": ((8, 16), ("f32", "f16")),
    "bf16": ((8, 16), ("f32",)),
    "tf32": ((4, 8), ("f32",)),
    **dict.fromkeys(INTEGERS, ((16, 32), ("s32",))),
    **dict.fromkeys(NIBBLES, ((32, 64), ("s32",))),
    **dict.fromkeys(FLOAT8, ((16, 32), ("f32", "f16"))),
}
NAMES = " ".join([f"m16n8k{k}" for k in (4, 8, 16, 32, 64)] + ["m8n8k4", *NIBBLES, *FLOAT8])


@rule("mma", allow=f"sync aligned row col satfinite rn {NAMES}")
def mma(low: Lowering, parts: list[str], operands: list[str]) -> None:
    saturate = "satfinite" in parts  # before the types as the manual has it, or behind them
    parts = [part for part in parts if part != "satfinite"]
    d, a, b, c = parts[-4:]
    registers = [low.split(vector[1:-1]) for vector in operands]
    if a == "f64":
        return mma_f64(low, parts, registers)
    k = int(parts[3].removeprefix("m16n8k"))
    depths, accumulators = SHAPES[a]
    mixed = next((kinds for kinds in (INTEGERS, NIBBLES, FLOAT8) if a in kinds), (a,))
    if parts[4:6] != ["row", "col"] or k not in depths or d != c or d not in accumulators:
        raise low.unsupported("shape or types")
    if b not in mixed:
        raise low.unsupported(f"{a} times {b}")
    bits = 4 if a in NIBBLES else 8 if a in (*INTEGERS, *FLOAT8) else 32 if a == "tf32" else 16
    counts = [2 if d == "f16" else 4, k * bits // 64, k * bits // 128, 2 if d == "f16" else 4]
    if [len(vector) for vector in registers] != counts:
        raise low.unsupported(f"registers: it takes {counts}")
    if len(parts) != 10 or (saturate and d != "s32"):
        raise low.unsupported("modifiers")
    flat = [r for vector in registers for r in values(low, "b32", vector)]
    emit_sync(low, "mma", flat, ALIGNED, k, TYPES[a], TYPES[b], TYPES[d], saturate)


def mma_f64(low: Lowering, parts: list[str], operands: list[list[str]]) -> None:
    rows, k = {
        "m8n8k4": (8, 4), "m16n8k4": (16, 4), "m16n8k8": (16, 8), "m16n8k16": (16, 16),
    }[parts[3]]  # fmt: skip
    modes = parts[6:-4]
    if parts[4:6] != ["row", "col"] or parts[-4:] != ["f64"] * 4 or modes not in ([], ["rn"]):
        raise low.unsupported("layout, types or rounding")
    counts = [rows // 4, rows * k // 32, k // 4, rows // 4]
    if [len(vector) for vector in operands] != counts:
        raise low.unsupported(f"registers: it takes {counts}")
    flat = [r for vector in operands for r in values(low, "f64", vector)]
    emit_sync(low, "mma.f64", flat, ALIGNED, rows, k)
