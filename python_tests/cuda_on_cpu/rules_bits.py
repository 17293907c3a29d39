"""Instructions on the bits of integers: counts, logic, shifts, fields and permutations."""

from __future__ import annotations

from .lower import Lowering
from .rules import bits_type, integer_type, rule, values


@rule("popc", "clz")
def count_bits(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    registers = [low.value(operands[0], "u32"), low.value(operands[1], kind)]
    low.emit(f"{parts[0]}.{bits_type(kind)}", registers)


@rule("and", "or", "xor", "not", "cnot", "brev")
def bitwise(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    low.emit(f"{parts[0]}.{bits_type(kind)}", values(low, kind, operands))


@rule("shl", "shr")
def shift(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    registers = [*values(low, kind, operands[:2]), low.value(operands[2], "b32")]
    name = bits_type(kind) if parts[0] == "shl" else integer_type(kind)
    low.emit(f"{parts[0]}.{name}", registers)


@rule("bfe")
def bfe(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [*values(low, parts[-1], operands[:2]), *values(low, "b32", operands[2:])]
    low.emit(f"bfe.{parts[-1]}", registers)


@rule("bfi")
def bfi(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [*values(low, parts[-1], operands[:3]), *values(low, "b32", operands[3:])]
    low.emit(f"bfi.{parts[-1]}", registers)


@rule("bfind", allow="shiftamt")
def bfind(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [low.value(operands[0], "b32"), low.value(operands[1], parts[-1])]
    low.emit(".".join(["bfind", *parts[1:]]), registers)


@rule("bmsk", allow="clamp wrap")
def bmsk(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("bmsk", values(low, "b32", operands), "wrap" in parts)


@rule("prmt", allow="f4e b4e rc8 ecl ecr rc16")
def prmt(low: Lowering, parts: list[str], operands: list[str]) -> None:
    modes = ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    mode = modes.index(parts[-1]) if parts[-1] in modes else -1
    low.emit("prmt", values(low, "b32", operands), mode)


@rule("shf", allow="l r wrap clamp")
def shf(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("shf", values(low, "b32", operands), parts[1] == "l", parts[2] == "wrap")
