"""Rules for comparisons, conversions and moves."""

from __future__ import annotations

from .lower import Lowering
from .parse import SIZES
from .registers import CLOCKS
from .rules import ROUNDING, TYPES, bits_type, integer_type, pair, rule, values
from .rules_formats import FLOAT8, PACKED, convert_float8, pack

COMPARISONS = {
    name: number
    for number, name in enumerate(
        "eq ne lt le gt ge equ neu ltu leu gtu geu num nan".split()  # noqa: SIM905
    )
}
COMPARISONS |= {"lo": 2, "ls": 3, "hi": 4, "hs": 5}
COMBINATIONS = {"and": 1, "or": 2, "xor": 3}


@rule("setp", allow=f"{' '.join(COMPARISONS)} and or xor ftz")
def setp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    registers = [*pair(low, operands[0], "pred"), *values(low, kind, operands[1:3])]
    combine = next((COMBINATIONS[part] for part in parts[2:] if part in COMBINATIONS), 0)
    negated = combine and operands[3].startswith("!")
    if combine:
        registers.append(low.value(operands[3].lstrip("!"), "pred"))
    name = f"setp.{integer_type(kind)}"
    low.emit(name, registers, COMPARISONS[parts[1]], combine, negated, "ftz" in parts)


@rule("set", allow=f"{' '.join(COMPARISONS)} ftz")
def set_(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind, result = parts[-1], parts[-2]
    if result not in ("u32", "s32", "f32"):
        raise low.unsupported(f"a result of {result}")
    registers = [low.value(operands[0], result), *values(low, kind, operands[1:])]
    ones = result == "f32"
    low.emit(
        f"set.{integer_type(kind)}", registers, COMPARISONS[parts[1]], 0, 0, "ftz" in parts, ones
    )


NAMES = TYPES | {"b16": TYPES["u16"], "b32": TYPES["u32"], "b64": TYPES["u64"]}
PAIRS = {"f16x2": TYPES["f16"], "bf16x2": TYPES["bf16"]}


@rule(
    "cvt",
    allow=f"{' '.join([*ROUNDING, *FLOAT8, *PACKED])} ftz sat relu satfinite pack",
)
def cvt(low: Lowering, parts: list[str], operands: list[str]) -> None:
    to, source = parts[-2], parts[-1]
    if parts[1] == "pack":
        return pack(low, parts, operands)
    if to in FLOAT8 or source in FLOAT8:
        return convert_float8(low, parts, operands)
    if "satfinite" in parts and (source != "f32" or to not in ("tf32", "f16", "bf16", *PAIRS)):
        raise low.unsupported(f".satfinite from {source} to {to}")
    if "satfinite" in parts and to == "tf32" and "rna" not in parts:
        raise low.unsupported(".satfinite to tf32, unless .rna, before sm_100")
    mode = next((ROUNDING[p] for p in parts if p in ROUNDING), 0)
    integral = any(p in ("rni", "rzi", "rmi", "rpi") for p in parts)
    flags = ("ftz" in parts) | ("sat" in parts) << 1 | ("relu" in parts) << 2 | integral << 3
    flags |= ("satfinite" in parts) << 4
    if to in PAIRS:
        registers = [low.value(operands[0], "b32"), *values(low, source, operands[1:])]
        return low.emit("cvt.pair", registers, PAIRS[to], NAMES[source], mode, flags)
    into = wider(low, operands[0], to)
    out = low.allocate("b32") if into else low.value(operands[0], to)
    low.emit(
        "cvt", [out, low_part(low, operands[1], source)], NAMES[to], NAMES[source], mode, flags
    )
    if into:  # the rest is the sign, or 0
        registers = [low.value(operands[0], into), out]
        low.emit("cvt", registers, NAMES[into], NAMES[to if is_integer(to) else "u32"], 0, 0)


def is_integer(kind: str) -> bool:
    return kind[0] in "us"


def wider(low: Lowering, operand: str, kind: str) -> str | None:
    """The 64-bit type, of the same sign, of a register that holds more than the type asks for."""
    if SIZES.get(low.kind(operand) or kind) != 8 or SIZES[kind] == 8:
        return None
    return "s64" if kind[0] == "s" else "u64"


def low_part(low: Lowering, operand: str, kind: str) -> int:
    """A source that may be a wider register than its type: PTX reads its low bits."""
    if not wider(low, operand, kind):
        return low.value(operand, kind)
    out = low.allocate("b32")
    low.emit("cvt", [out, low.value(operand, "u64")], NAMES["u32"], NAMES["u64"], 0, 0)
    return out


@rule("mov")
def mov(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    to, source = operands
    if source in CLOCKS:
        return low.emit(f"clock.{bits_type(kind)}", [low.value(to, kind)])
    if kind == "b128":
        return mov_wide(low, to, source)
    if to.startswith("{") or source.startswith("{"):
        whole, vector = (source, to) if to.startswith("{") else (to, source)
        elements = low.split(vector[1:-1])
        bits = 8 * SIZES[kind] // len(elements)
        registers = [low.value(whole, kind), *values(low, f"b{max(bits, 8)}", elements)]
        return low.emit("unpack" if to.startswith("{") else "pack", registers, len(elements), bits)
    low.emit(f"mov.{bits_type(kind)}", [low.value(to, kind), low.value(source, kind)])


def mov_wide(low: Lowering, to: str, source: str) -> None:
    """Whole, or from or to two registers of 64 bits."""
    sides = []
    for side in (to, source):
        names = low.split(side[1:-1]) if side.startswith("{") else []
        if names and [SIZES.get(low.kind(name)) for name in names] != [8, 8]:
            raise low.unsupported(f"{side} is not two registers of 64 bits")
        sides.append(values(low, "b64", names) if names else low.halves(side))
    for d, a in zip(*sides, strict=True):
        low.emit("mov.b64", [d, a])
