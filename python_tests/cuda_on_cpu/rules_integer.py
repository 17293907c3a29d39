"""Rules for rarer integer instructions: logic of three inputs, dot products, 24-bit products."""

from __future__ import annotations

from .lower import Lowering
from .rules import pair, rule, values


@rule("lop3", allow="and or")
def lop3(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if parts[1] in ("and", "or"):
        q = operands[5]
        registers = [*pair(low, operands[0]), *values(low, "b32", operands[1:4])]
        registers.append(low.value(q.lstrip("!"), "pred"))
        table = int(operands[4], 0)
        return low.emit("lop3.predicate", registers, table, parts[1] == "and", q.startswith("!"))
    low.emit("lop3", values(low, "b32", operands[:4]), int(operands[4], 0))


@rule("dp4a")
def dp4a(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("dp4a", values(low, "b32", operands), parts[1] == "s32", parts[2] == "s32")


@rule("dp2a", allow="lo hi")
def dp2a(low: Lowering, parts: list[str], operands: list[str]) -> None:
    signs = [part == "s32" for part in parts[2:]]
    low.emit("dp2a", values(low, "b32", operands), *signs, ("lo", "hi").index(parts[1]))


@rule("mul24", "mad24", allow="lo hi sat")
def mad24(low: Lowering, parts: list[str], operands: list[str]) -> None:
    saturates = "sat" in parts
    if parts[-1] not in ("s32", "u32") or (saturates and parts != ["mad24", "hi", "sat", "s32"]):
        raise low.unsupported("types or modifiers")
    registers = values(low, "b32", [*operands, "0"] if parts[0] == "mul24" else operands)
    if len(registers) != 4:
        raise low.unsupported("operands")
    low.emit("mad24", registers, parts[-1] == "s32", ("lo", "hi").index(parts[1]), saturates)


@rule("fns")
def fns(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("fns", values(low, "b32", operands))


@rule("szext", allow="clamp wrap")
def szext(low: Lowering, parts: list[str], operands: list[str]) -> None:
    clamps = ("wrap", "clamp").index(parts[1])
    low.emit("szext", values(low, "b32", operands), parts[2] == "s32", clamps)
