"""How each instruction becomes a handler of the core: one rule per root of an opcode."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .lower import Lowering
from .parse import SIZES

# Hints to caches, which there are none of.
HINTS = ("L1::", "L2::", "level::")

# As formats.h numbers them.
TYPES = {
    name: number
    for number, name in enumerate(
        "u8 s8 u16 s16 u32 s32 u64 s64 f16 bf16 f32 f64 tf32 e4m3 e5m2 u4 s4".split()  # noqa: SIM905
    )
}
ROUNDING = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")


class Rule(NamedTuple):
    """``lower`` turns an instruction into handlers.

    ``allowed``: the modifiers that it reads; ``floats``: those of instructions on floats.
    """

    lower: Callable[[Lowering, list[str], list[str]], None]
    allowed: frozenset[str]
    floats: frozenset[str]

    def read(self, low: Lowering, parts: list[str]) -> list[str]:
        """An opcode's parts without cache hints. A modifier that would go unread is refused."""
        allowed = self.floats if parts[-1] in FLOATS else self.allowed
        for part in parts[1:]:
            if part not in allowed and part not in SIZES and not part.startswith(HINTS):
                raise low.unsupported(f"modifier .{part}")
        return [part for part in parts if not part.startswith(HINTS)]


RULES: dict[str, Rule] = {}


def rule(*names: str, allow: str = "", floats: str | None = None) -> Callable:
    allowed = frozenset(allow.split())
    of_floats = allowed if floats is None else frozenset(floats.split())

    def put(function):
        for name in names:
            RULES[name] = Rule(function, allowed, of_floats)
        return function

    return put


def bits_type(kind: str) -> str:
    return "pred" if kind == "pred" else f"b{8 * max(SIZES[kind], 2)}"


def integer_type(kind: str) -> str:
    return "u" + kind[1:] if kind[0] == "b" and kind[1:].isdigit() else kind


def values(low: Lowering, kind: str, operands: list[str]) -> list[int]:
    return [low.value(operand, kind) for operand in operands]


def pair(low: Lowering, operand: str, kind: str = "b32") -> list[int]:
    """The registers of "d|p", or of "d" and none."""
    d, _, p = operand.partition("|")
    return [low.value(d, kind), low.value(p, "pred") if p else -1]


def float_modes(parts: list[str]) -> list[int]:
    mode = next((ROUNDING[p] for p in parts if p in ROUNDING), 0)
    special = "NaN" in parts or "relu" in parts
    return [mode, "ftz" in parts, "sat" in parts, special]


@rule(
    *("add", "sub", "mul", "div", "min", "max", "abs", "neg"),
    allow="lo hi wide cc sat",
    floats="rn rz rm rp ftz sat NaN full approx xorsign abs",
)
def arithmetic(low: Lowering, parts: list[str], operands: list[str]) -> None:
    root, kind = parts[0], parts[-1]
    if len(operands) != (2 if root in ("abs", "neg") else 3):
        raise low.unsupported(f"{len(operands)} operands")
    if "xorsign" in parts or "abs" in parts[1:]:
        return magnitude(low, parts, operands)
    if kind in FLOATS:
        return low.emit(f"{root}.{kind}", values(low, kind, operands), *float_modes(parts))
    if "cc" in parts:
        return carry(low, parts, operands)
    if root == "mul" and "wide" in parts:
        wide = kind[0] + str(16 * SIZES[kind])
        first = low.value(operands[0], wide)
        return low.emit(f"mul.wide.{kind}", [first, *values(low, kind, operands[1:])])
    if root == "mul":
        root += ".hi" if "hi" in parts else ".lo"
    name = f"{root}.sat.{kind}" if "sat" in parts else f"{root}.{integer_type(kind)}"
    low.emit(name, values(low, kind, operands))


def magnitude(low: Lowering, parts: list[str], operands: list[str]) -> None:
    root, kind = parts[0], parts[-1]
    modes = [part for part in parts[1:-1] if part not in ("ftz", "NaN")]
    if modes != ["xorsign", "abs"] or root not in ("min", "max") or kind == "f64":
        raise low.unsupported("modifiers")
    flags = ["ftz" in parts, "NaN" in parts, root == "max"]
    low.emit(f"xorsign.{kind}", values(low, kind, operands), *flags)


@rule("addc", "subc", allow="cc")
def carry(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [*values(low, parts[-1], operands), low.carry_register()]
    reads, subtracts = parts[0].endswith("c"), parts[0].startswith("sub")
    name = f"carry.u{8 * SIZES[parts[-1]]}"
    low.emit(name, registers, reads, "cc" in parts, subtracts)


@rule("madc", allow="lo hi cc")
def multiply_carry(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if parts[-1][0] == "s" and "hi" in parts:
        raise low.unsupported("the high half of a signed product with carry")
    registers = [*values(low, parts[-1], operands), low.carry_register()]
    name = f"carry.mad.u{8 * SIZES[parts[-1]]}"
    low.emit(name, registers, parts[0] == "madc", "cc" in parts, "hi" in parts)


@rule("rem", "sad")
def integer_only(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit(f"{parts[0]}.{integer_type(parts[-1])}", values(low, parts[-1], operands))


@rule("mad", "fma", allow="lo hi wide cc", floats="rn rz rm rp ftz sat relu")
def multiply_add(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    if kind in FLOATS:
        return low.emit(f"fma.{kind}", values(low, kind, operands), *float_modes(parts))
    if "cc" in parts:
        return multiply_carry(low, parts, operands)
    if "wide" in parts:
        wide = kind[0] + str(16 * SIZES[kind])
        d, a, b, c = operands
        registers = [low.value(d, wide), *values(low, kind, [a, b]), low.value(c, wide)]
        return low.emit(f"mad.wide.{kind}", registers)
    low.emit(f"mad.{parts[1]}.{integer_type(kind)}", values(low, kind, operands))


@rule(
    "sqrt",
    "rcp",
    "rsqrt",
    "ex2",
    "lg2",
    "sin",
    "cos",
    "tanh",
    "copysign",
    allow="rn rz rm rp ftz approx",
)
def function(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit(f"{parts[0]}.{parts[-1]}", values(low, parts[-1], operands), *float_modes(parts))


@rule("testp", allow="finite infinite number notanumber normal subnormal")
def testp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    tests = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    registers = [low.value(operands[0], "pred"), low.value(operands[1], parts[-1])]
    low.emit(f"testp.{parts[-1]}", registers, tests.index(parts[1]))


@rule("selp")
def selp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind, p = parts[-1], operands[3]
    registers = [*values(low, kind, operands[:3]), low.value(p.lstrip("!"), "pred")]
    low.emit(f"selp.{bits_type(kind)}", registers, p.startswith("!"))


@rule("slct", allow="ftz")
def slct(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [*values(low, parts[-2], operands[:3]), low.value(operands[3], parts[-1])]
    low.emit(f"slct.{parts[-1]}.{bits_type(parts[-2])}", registers, "ftz" in parts)


from . import (  # noqa: E402  (they add their rules)
    rules_bits,  # noqa: F401
    rules_bulk,  # noqa: F401
    rules_cluster,  # noqa: F401
    rules_compare,  # noqa: F401
    rules_control,  # noqa: F401
    rules_integer,  # noqa: F401
    rules_mbarrier,  # noqa: F401
    rules_memory,  # noqa: F401
    rules_warp,  # noqa: F401
    rules_wgmma,  # noqa: F401
    rules_wmma,  # noqa: F401
)
