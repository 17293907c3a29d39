"""Rules for comparisons and conversions."""

from __future__ import annotations

from .lower import Lowering
from .rules import ROUNDING, integer_type, known, rule, values

COMPARISONS = {
    **{
        name: index
        for index, name in enumerate(
            [
                "eq",
                "ne",
                "lt",
                "le",
                "gt",
                "ge",
                "equ",
                "neu",
                "ltu",
                "leu",
                "gtu",
                "geu",
                "num",
                "nan",
            ]
        )
    },
    "lo": 2,
    "ls": 3,
    "hi": 4,
    "hs": 5,
}
COMBINATIONS = {"and": 1, "or": 2, "xor": 3}


@rule("setp")
def setp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, *COMPARISONS, *COMBINATIONS, "ftz")
    kind = parts[-1]
    p, _, q = operands[0].partition("|")
    registers = [low.value(p, "pred"), low.value(q, "pred") if q else -1]
    registers += values(low, kind, operands[1:3])
    combine = next((COMBINATIONS[part] for part in parts[2:] if part in COMBINATIONS), 0)
    negated = combine and operands[3].startswith("!")
    if combine:
        registers.append(low.value(operands[3].lstrip("!"), "pred"))
    name = f"setp.{integer_type(kind)}"
    low.emit(name, registers, COMPARISONS[parts[1]], combine, negated, "ftz" in parts)


@rule("set")
def set_(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, *COMPARISONS, "ftz")
    kind, result = parts[-1], parts[-2]
    registers = [low.value(operands[0], result), *values(low, kind, operands[1:])]
    ones = result == "f32"
    low.emit(
        f"set.{integer_type(kind)}", registers, COMPARISONS[parts[1]], 0, 0, "ftz" in parts, ones
    )


CVT_TYPES = {
    **{
        n: i
        for i, n in enumerate(
            [
                "u8",
                "s8",
                "u16",
                "s16",
                "u32",
                "s32",
                "u64",
                "s64",
                "f16",
                "bf16",
                "f32",
                "f64",
                "tf32",
            ]
        )
    },
    "b16": 2,
    "b32": 4,
    "b64": 6,
    "f16x2": 8,
    "bf16x2": 9,
}


@rule("cvt")
def cvt(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, *ROUNDING, "ftz", "sat", "relu", "satfinite")
    to, source = parts[-2], parts[-1]
    if "satfinite" in parts or to not in CVT_TYPES or source not in CVT_TYPES:
        raise low.unsupported("conversion")
    mode = next((ROUNDING[p] for p in parts if p in ROUNDING), 0)
    integral = any(p in ("rni", "rzi", "rmi", "rpi") for p in parts)
    flags = ("ftz" in parts) | ("sat" in parts) << 1 | ("relu" in parts) << 2 | integral << 3
    immediates = (CVT_TYPES[to], CVT_TYPES[source], mode, flags)
    if to.endswith("x2"):
        registers = [low.value(operands[0], "b32"), *values(low, source, operands[1:])]
        return low.emit("cvt.pair", registers, *immediates)
    low.emit("cvt", [low.value(operands[0], to), low.value(operands[1], source)], *immediates)
