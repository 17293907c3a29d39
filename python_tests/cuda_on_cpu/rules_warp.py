"""Rules for what lanes, warps and blocks do together: shuffles, votes, barriers, matrices."""

from __future__ import annotations

import re

from .lower import Lowering
from .rules import known, rule, values

ALIGNED = -1  # in place of the operand that holds the member mask


def emit_sync(low: Lowering, name: str, registers: list[int], mask: int, *immediates: int) -> None:
    low.emit(name, registers, *immediates, *[0] * (5 - len(immediates)), mask)


@rule("shfl")
def shfl(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "sync", "up", "down", "bfly", "idx")
    if parts[1] != "sync":
        raise low.unsupported("shfl without .sync")
    d, _, p = operands[0].partition("|")
    registers = [low.value(d, "b32"), low.value(p, "pred") if p else -1]
    registers += values(low, "b32", operands[1:])
    emit_sync(low, "shfl", registers, 5, ("up", "down", "bfly", "idx").index(parts[2]))


@rule("vote")
def vote(low: Lowering, parts: list[str], operands: list[str]) -> None:
    mode = ("all", "any", "uni", "ballot").index(parts[2])
    p = operands[1]
    registers = [
        low.value(operands[0], "b32" if mode == 3 else "pred"),
        low.value(p.lstrip("!"), "pred"),
        low.value(operands[2], "b32"),
    ]
    emit_sync(low, "vote", registers, 2, mode, p.startswith("!"))


@rule("match")
def match(low: Lowering, parts: list[str], operands: list[str]) -> None:
    d, _, p = operands[0].partition("|")
    registers = [
        low.value(d, "b32"),
        low.value(p, "pred") if p else -1,
        low.value(operands[1], parts[-1]),
        low.value(operands[2], "b32"),
    ]
    emit_sync(low, f"match.{parts[-1]}", registers, 3, parts[1] == "all")


@rule("redux")
def redux(low: Lowering, parts: list[str], operands: list[str]) -> None:
    operation = ("add", "min", "max", "and", "or", "xor").index(parts[2])
    kind = "s32" if parts[-1] == "s32" else "u32"
    emit_sync(low, f"redux.{kind}", values(low, "b32", operands), 2, operation)


@rule("elect")
def elect(low: Lowering, parts: list[str], operands: list[str]) -> None:
    d, _, p = operands[0].partition("|")
    registers = [low.value(d, "b32"), low.value(p, "pred"), low.value(operands[1], "b32")]
    emit_sync(low, "elect", registers, 2)


@rule("activemask")
def activemask(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("activemask", [low.value(operands[0], "b32")])


@rule("bar", "barrier")
def bar(low: Lowering, parts: list[str], operands: list[str]) -> None:
    parts = [part for part in parts if part != "cta"]
    if parts[1] == "warp":
        return emit_sync(low, "bar.warp", values(low, "b32", operands), 0)
    known(low, parts, "sync", "arrive", "red", "popc", "and", "or", "aligned")
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


@rule("ldmatrix", "stmatrix")
def matrix(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta")
    if parts[-1] != "b16":
        raise low.unsupported(f"matrices of {parts[-1]}")
    store = parts[0] == "stmatrix"
    memory, vector = operands if store else reversed(operands)
    elements = low.split(vector[1:-1]) if vector.startswith("{") else [vector]
    register, offset, wide, _ = low.address(memory)
    registers = [register, *values(low, "b32", elements)]
    emit_sync(
        low, "matrix.move", registers, ALIGNED, len(elements), "trans" in parts, offset, wide, store
    )


@rule("movmatrix")
def movmatrix(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "sync", "aligned", "m8n8", "trans")
    emit_sync(low, "matrix.transpose", values(low, "b32", operands), ALIGNED)


ELEMENTS = {n: i for i, n in enumerate(["f16", "bf16", "tf32", "s8", "u8", "f32", "s32", "f64"])}


@rule("mma")
def mma(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(
        low, parts, "sync", "aligned", "row", "col", "satfinite", *(p for p in parts if p[0] == "m")
    )
    shape = re.search(r"m16n8k(\d+)", ".".join(parts))
    accumulator, a, b, c = parts[-4:]
    supported = accumulator == c and accumulator in ("f32", "f16", "s32") and a in ELEMENTS
    if not shape or "row" not in parts or "col" not in parts or not supported or b not in ELEMENTS:
        raise low.unsupported("shape or types")
    if ELEMENTS[a] > 4 or ELEMENTS[b] > 4:
        raise low.unsupported("types")
    registers = [r for vector in operands for r in values(low, "b32", low.split(vector[1:-1]))]
    k, saturate = int(shape[1]), "satfinite" in parts
    immediates = (k, ELEMENTS[a], ELEMENTS[b], ELEMENTS[accumulator], saturate)
    emit_sync(low, "mma", registers, ALIGNED, *immediates)
