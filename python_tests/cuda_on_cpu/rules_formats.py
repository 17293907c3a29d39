"""Rules for conversions to and from 8-bit floats, and for packing integers."""

from __future__ import annotations

from .lower import Lowering
from .rules import TYPES, values

FLOAT8 = {"e4m3x2": TYPES["e4m3"], "e5m2x2": TYPES["e5m2"]}
PACKED = {f"{sign}{bits}": (bits, sign == "s") for sign in "us" for bits in (2, 4, 8, 16)}


def convert_float8(low: Lowering, parts: list[str], operands: list[str]) -> None:
    to, source = parts[-2:]
    modes = ["rn", "satfinite"] if to in FLOAT8 else ["rn"]
    relu = "relu" in parts
    if sorted(parts[1:-2]) != sorted([*modes, *(["relu"] if relu else [])]):
        raise low.unsupported("rounding or modifiers")
    if to == "f16x2":
        registers = [low.value(operands[0], "b32"), low.value(operands[1], "b16")]
        return low.emit("cvt.f16x2.float8", registers, FLOAT8[source], relu)
    if source not in ("f32", "f16x2") or len(operands) != (3 if source == "f32" else 2):
        raise low.unsupported("types or operands")
    registers = [low.value(operands[0], "b16"), *values(low, source, operands[1:])]
    low.emit(f"cvt.float8.{source}", registers, FLOAT8[to], relu)


def pack(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """cvt.pack.sat.type.type-of-a-and-b d, a, b; parts of 8 bits and fewer go on with c."""
    to, source = parts[3:5]
    bits, is_signed = PACKED[to]
    narrow = bits < 16
    if parts[2] != "sat" or source != "s32" or parts[5:] != ["b32"] * narrow:
        raise low.unsupported("types or modifiers")
    if len(operands) != 3 + narrow:
        raise low.unsupported("operands")
    registers = values(low, "b32", operands if narrow else [*operands, "0"])
    low.emit("cvt.pack", registers, bits, is_signed)
