"""How each instruction becomes a handler of the core: one rule per root of an opcode."""

from __future__ import annotations

from collections.abc import Callable

from .lower import Lowering
from .parse import SIZES
from .registers import CLOCKS

Rule = Callable[[Lowering, list[str], list[str]], None]
RULES: dict[str, Rule] = {}

ROUNDING = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
NARROW = ("f16", "bf16", "f16x2", "bf16x2")
FLOATS = ("f32", "f64", *NARROW)


def rule(*names: str) -> Callable[[Rule], Rule]:
    def put(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return put


def bits_type(kind: str) -> str:
    return "pred" if kind == "pred" else f"b{8 * max(SIZES[kind], 2)}"


def integer_type(kind: str) -> str:
    return "u" + kind[1:] if kind[0] == "b" else kind


def values(low: Lowering, kind: str, operands: list[str]) -> list[int]:
    return [low.value(operand, kind) for operand in operands]


def float_modes(parts: list[str]) -> list[int]:
    mode = next((ROUNDING[p] for p in parts if p in ROUNDING), 0)
    special = "NaN" in parts or "relu" in parts
    return [mode, "ftz" in parts, "sat" in parts, special]


def known(low: Lowering, parts: list[str], *allowed: str) -> None:
    """No modifier is dropped unread."""
    for part in parts[1:]:
        if part not in allowed and part not in SIZES:
            raise low.unsupported(f"modifier .{part}")


@rule("add", "sub", "mul", "div", "min", "max", "abs", "neg")
def arithmetic(low: Lowering, parts: list[str], operands: list[str]) -> None:
    root, kind = parts[0], parts[-1]
    if kind in FLOATS:
        known(low, parts, *ROUNDING, "ftz", "sat", "NaN", "full", "approx")
        return low.emit(f"{root}.{kind}", values(low, kind, operands), *float_modes(parts))
    if "cc" in parts:
        return carry(low, parts, operands)
    known(low, parts, "lo", "hi", "wide", "sat")
    if root == "mul" and "wide" in parts:
        wide = kind[0] + str(16 * SIZES[kind])
        first = low.value(operands[0], wide)
        return low.emit(f"mul.wide.{kind}", [first, *values(low, kind, operands[1:])])
    if root == "mul":
        root += ".hi" if "hi" in parts else ".lo"
    name = f"{root}.sat.{kind}" if "sat" in parts else f"{root}.{integer_type(kind)}"
    low.emit(name, values(low, kind, operands))


@rule("addc", "subc")
def carry(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "cc")
    registers = [*values(low, parts[-1], operands), low.carry_register()]
    reads, subtracts = parts[0].endswith("c"), parts[0].startswith("sub")
    name = f"carry.u{8 * SIZES[parts[-1]]}"
    low.emit(name, registers, reads, "cc" in parts, subtracts)


@rule("madc")
def multiply_carry(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "lo", "hi", "cc")
    if parts[-1][0] == "s" and "hi" in parts:
        raise low.unsupported("the high half of a signed product with carry")
    registers = [*values(low, parts[-1], operands), low.carry_register()]
    name = f"carry.mad.u{8 * SIZES[parts[-1]]}"
    low.emit(name, registers, parts[0] == "madc", "cc" in parts, "hi" in parts)


@rule("rem", "sad")
def integer_only(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts)
    low.emit(f"{parts[0]}.{integer_type(parts[-1])}", values(low, parts[-1], operands))


@rule("mad", "fma")
def multiply_add(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    if kind in FLOATS:
        known(low, parts, *ROUNDING, "ftz", "sat", "relu")
        return low.emit(f"fma.{kind}", values(low, kind, operands), *float_modes(parts))
    if "cc" in parts:
        return multiply_carry(low, parts, operands)
    known(low, parts, "lo", "hi", "wide")
    if "wide" in parts:
        wide = kind[0] + str(16 * SIZES[kind])
        d, a, b, c = operands
        registers = [low.value(d, wide), *values(low, kind, [a, b]), low.value(c, wide)]
        return low.emit(f"mad.wide.{kind}", registers)
    low.emit(f"mad.{parts[1]}.{integer_type(kind)}", values(low, kind, operands))


@rule("sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "copysign")
def function(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, *ROUNDING, "ftz", "approx")
    low.emit(f"{parts[0]}.{parts[-1]}", values(low, parts[-1], operands), *float_modes(parts))


@rule("testp")
def testp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    tests = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    registers = [low.value(operands[0], "pred"), low.value(operands[1], parts[-1])]
    low.emit(f"testp.{parts[-1]}", registers, tests.index(parts[1]))


@rule("and", "or", "xor", "not", "cnot", "popc", "brev", "clz")
def bitwise(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts)
    kind = parts[-1]
    low.emit(f"{parts[0]}.{bits_type(kind)}", values(low, kind, operands))


@rule("shl", "shr")
def shift(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts)
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


@rule("bfind")
def bfind(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "shiftamt")
    registers = [low.value(operands[0], "b32"), low.value(operands[1], parts[-1])]
    low.emit(".".join(["bfind", *parts[1:]]), registers)


@rule("bmsk")
def bmsk(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "clamp", "wrap")
    low.emit("bmsk", values(low, "b32", operands), "wrap" in parts)


@rule("prmt")
def prmt(low: Lowering, parts: list[str], operands: list[str]) -> None:
    modes = ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    mode = modes.index(parts[-1]) if parts[-1] in modes else -1
    low.emit("prmt", values(low, "b32", operands), mode)


@rule("lop3")
def lop3(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts)
    low.emit("lop3", values(low, "b32", operands[:4]), int(operands[4], 0))


@rule("shf")
def shf(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "l", "r", "wrap", "clamp")
    low.emit("shf", values(low, "b32", operands), parts[1] == "l", parts[2] == "wrap")


@rule("dp4a")
def dp4a(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("dp4a", values(low, "b32", operands), parts[1] == "s32", parts[2] == "s32")


@rule("selp")
def selp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind, p = parts[-1], operands[3]
    registers = [*values(low, kind, operands[:3]), low.value(p.lstrip("!"), "pred")]
    low.emit(f"selp.{bits_type(kind)}", registers, p.startswith("!"))


@rule("slct")
def slct(low: Lowering, parts: list[str], operands: list[str]) -> None:
    known(low, parts, "ftz")
    registers = [*values(low, parts[-2], operands[:3]), low.value(operands[3], parts[-1])]
    low.emit(f"slct.{parts[-1]}.{bits_type(parts[-2])}", registers, "ftz" in parts)


@rule("mov")
def mov(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    to, source = operands
    if source in CLOCKS:
        return low.emit(f"clock.{bits_type(kind)}", [low.value(to, kind)])
    if to.startswith("{") or source.startswith("{"):
        whole, vector = (source, to) if to.startswith("{") else (to, source)
        elements = low.split(vector[1:-1])
        bits = 8 * SIZES[kind] // len(elements)
        registers = [low.value(whole, kind), *values(low, f"b{max(bits, 8)}", elements)]
        return low.emit("unpack" if to.startswith("{") else "pack", registers, len(elements), bits)
    low.emit(f"mov.{bits_type(kind)}", [low.value(to, kind), low.value(source, kind)])


from . import rules_compare, rules_control, rules_memory, rules_warp  # noqa: E402, F401  (they add their rules)
