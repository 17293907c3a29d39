"""Rules for loads, stores, atomics, address conversions and cp.async."""

from __future__ import annotations

from .lower import Lowering
from .parse import SIZES
from .registers import (
    GENERIC,
    GLOBAL,
    LOCAL,
    LOCAL_WINDOW,
    PARAM,
    PARAM_WINDOW,
    SHARED,
    SHARED_WINDOW,
)
from .rules import known, rule, values

SPACES = {
    "global": GLOBAL,
    "const": GLOBAL,
    "shared": SHARED,
    "shared::cta": SHARED,
    "local": LOCAL,
    "param": PARAM,
}
ORDERS = ("volatile", "relaxed", "acquire", "release", "acq_rel")
SCOPES = ("cta", "gpu", "sys", "cluster")
CACHES = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "noftz", "weak")


def split_colons(opcode: list[str]) -> list[str]:
    """Cache hints (L1::evict_last, L2::128B, ...) change nothing here."""
    return [part for part in opcode if not part.startswith(("L1::", "L2::", "level::"))]


def space_of(low: Lowering, parts: list[str], variable: str | None) -> int:
    named = next((SPACES[part] for part in parts if part in SPACES), GENERIC)
    if named == PARAM and variable == "local":
        return LOCAL  # the parameters of device functions
    return named


def address_operands(low: Lowering, operand: str, space: int) -> tuple[int, int, bool]:
    register, offset, wide, _ = low.address(operand)
    return register, offset, wide


@rule("ld", "ldu", "st")
def load_store(low: Lowering, parts: list[str], operands: list[str]) -> None:
    parts = split_colons(parts)
    known(low, parts, *SPACES, *ORDERS, *SCOPES, *CACHES, "v2", "v4", "v8")
    kind = parts[-1]
    memory, value = operands[:2] if parts[0] == "st" else (operands[1], operands[0])
    register, offset, wide, variable = low.address(memory)
    space = space_of(low, parts, variable)
    elements = low.split(value[1:-1]) if value.startswith("{") else [value]
    size = SIZES[kind]
    into_wide = size < 8 and any(SIZES.get(low.kind(e) or kind) == 8 for e in elements)
    strong = any(part in ORDERS for part in parts)
    flags = wide | (kind[0] == "s") << 1 | into_wide << 2 | strong << 3
    registers = [register, *values(low, "b64" if into_wide else kind, elements)]
    counted = parts[0] == "st" or space not in (PARAM, LOCAL)
    name = "st" if parts[0] == "st" else "ld" if counted else "ld.param"
    low.emit(name, registers, space, size, len(elements), offset, flags)


ATOMICS = {
    n: i
    for i, n in enumerate(["add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"])
}


@rule("atom", "red")
def atomic(low: Lowering, parts: list[str], operands: list[str]) -> None:
    parts = split_colons(parts)
    known(low, parts, *SPACES, *ORDERS, *SCOPES, *ATOMICS, "noftz", "async")
    kind = parts[-1]
    operation = next(part for part in parts[1:] if part in ATOMICS)
    if parts[0] == "red":
        operands = ["_", *operands]
    register, offset, wide, variable = low.address(operands[1])
    registers = [low.value(operands[0], kind), register, *values(low, kind, operands[2:])]
    name = "u" + kind[1:] if kind[0] == "b" and kind[1:].isdigit() else kind
    space = space_of(low, parts, variable)
    low.emit(f"atom.{name}", registers, space, SIZES[kind], 1, offset, wide, ATOMICS[operation])


WINDOWS = {
    "shared": SHARED_WINDOW,
    "shared::cta": SHARED_WINDOW,
    "local": LOCAL_WINDOW,
    "param": PARAM_WINDOW,
    "global": 0,
    "const": 0,
}


@rule("cvta")
def cvta(low: Lowering, parts: list[str], operands: list[str]) -> None:
    window = next(WINDOWS[part] for part in parts if part in WINDOWS)
    registers = values(low, "u64", operands)
    low.emit("cvta", registers, -window if "to" in parts else window)


@rule("isspacep")
def isspacep(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [low.value(operands[0], "pred"), low.value(operands[1], "u64")]
    low.emit("isspacep", registers, WINDOWS[parts[1]])


@rule("cp")
def cp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    parts = split_colons(parts)
    name = ".".join(parts)
    if name == "cp.async.commit_group":
        return low.emit("cp.async.commit", [])
    if name == "cp.async.wait_group":
        return low.emit("cp.async.wait_group", [], int(operands[0], 0))
    if name == "cp.async.wait_all":
        return low.emit("cp.async.wait_all", [])
    if parts[1] != "async" or parts[2] not in ("ca", "cg"):
        raise low.unsupported(f"instruction {name}")
    known(low, parts, "async", "ca", "cg", "shared", "shared::cta", "global")
    to, to_offset, to_wide = address_operands(low, operands[0], SHARED)
    source, source_offset, _ = address_operands(low, operands[1], GLOBAL)
    size = low.value(operands[3], "b32") if len(operands) > 3 else -1
    if len(operands) > 3 and low.kind(operands[3]) in ("b64", "u64"):
        size = -1  # a cache policy, not a size
    low.emit("cp.async", [to, source, size], int(operands[2], 0), to_offset, source_offset, to_wide)
