"""Rules for loads, stores, atomics, address conversions and cp.async."""

from __future__ import annotations

from .lower import Lowering
from .parse import SIZES
from .registers import (
    CLUSTER,
    GENERIC,
    GLOBAL,
    LOCAL,
    LOCAL_WINDOW,
    PARAM,
    PARAM_WINDOW,
    SHARED,
    SHARED_WINDOW,
)
from .rules import FLOATS, integer_type, rule, values
from .rules_bulk import BYTES, MODIFIERS, asynchronous, store_async
from .rules_mbarrier import only

SPACES = {
    "global": GLOBAL,
    "const": GLOBAL,
    "shared": SHARED,
    "shared::cta": SHARED,
    "shared::cluster": CLUSTER,
    "local": LOCAL,
    "param": PARAM,
}
ORDERS = ("volatile", "relaxed", "acquire", "release", "acq_rel")
PLACE = f"{' '.join(SPACES)} {' '.join(ORDERS)} cta gpu sys cluster"


def order_flags(parts: list[str]) -> int:
    """Bits 4 to 6 of load_store.cpp."""
    acquires = "acquire" in parts or "acq_rel" in parts
    releases = "release" in parts or "acq_rel" in parts
    return acquires << 4 | releases << 5 | ("cta" in parts) << 6


def space_of(parts: list[str], variable: str | None) -> int:
    named = next((SPACES[part] for part in parts if part in SPACES), GENERIC)
    if named == PARAM and variable == "local":
        return LOCAL  # the parameters of device functions
    return named


@rule("ld", "ldu", "st", allow=f"{PLACE} ca cg cs lu cv wb wt nc weak v2 v4 v8 async {BYTES}")
def load_store(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if "async" in parts or BYTES in parts:
        if parts[0] != "st":
            raise low.unsupported("an asynchronous load")
        return store_async(low, parts, operands)
    kind = parts[-1]
    memory, value = operands[:2] if parts[0] == "st" else (operands[1], operands[0])
    register, offset, wide, variable = low.address(memory)
    space = space_of(parts, variable)
    elements = low.split(value[1:-1]) if value.startswith("{") else [value]
    size = SIZES[kind]
    if kind == "b128":
        if value.startswith("{") or space == PARAM:
            raise low.unsupported("vectors and parameters of 128 bits")
        flags = wide | any(part in ORDERS for part in parts) << 3
        return low.emit(parts[0], [register, *low.halves(value)], space, 8, 2, offset, flags)
    into_wide = size < 8 and any(SIZES.get(low.kind(e) or kind) == 8 for e in elements)
    strong = any(part in ORDERS for part in parts)
    flags = wide | (kind[0] == "s") << 1 | into_wide << 2 | strong << 3 | order_flags(parts)
    registers = [register, *values(low, "b64" if into_wide else kind, elements)]
    counted = parts[0] == "st" or space not in (PARAM, LOCAL)
    name = "st" if parts[0] == "st" else "ld" if counted else "ld.param"
    low.emit(name, registers, space, size, len(elements), offset, flags)


ATOMICS = {
    n: i
    for i, n in enumerate(["add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"])
}


@rule("atom", "red", allow=f"{PLACE} {' '.join(ATOMICS)} noftz v2 v4 v8")
def atomic(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = next(part for part in reversed(parts) if part in SIZES)
    operation = next(part for part in parts[1:] if part in ATOMICS)
    if any(part in VECTORS for part in parts):
        return atomic_vector(low, parts, operands, kind)
    if kind in FLOATS and operation != "add" and (kind, operation) != ("f32", "exch"):
        raise low.unsupported(f"{operation} of {kind}")
    if parts[0] == "red":
        operands = ["_", *operands]
    operands = operands[: 4 if operation == "cas" else 3]  # without a cache policy
    register, offset, wide, variable = low.address(operands[1])
    space = space_of(parts, variable)
    if kind == "b128":
        if operation not in ("exch", "cas") or space == LOCAL:
            raise low.unsupported(f"{operation} of 128 bits")
        old, *given = (low.halves(x)[0] if x != "_" else -1 for x in [operands[0], *operands[2:]])
        registers = [old, register, *given]
    else:
        registers = [low.value(operands[0], kind), register, *values(low, kind, operands[2:])]
    low.emit(
        f"atom.{kind if kind == 'b128' else integer_type(kind)}",
        registers,
        space,
        SIZES[kind],
        1,
        offset,
        wide | order_flags(parts),
        ATOMICS[operation],
    )


VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def atomic_vector(low: Lowering, parts: list[str], operands: list[str], kind: str) -> None:
    """Each element is an atomic of its own; the vector is aligned to its size."""
    if parts[0] == "red":
        operands = ["", *operands]
    count = next(VECTORS[part] for part in parts if part in VECTORS)
    kinds = ("f32", "f16", "bf16", "f16x2", "bf16x2")
    olds, memory, news = operands[0], *operands[1:3]
    if kind not in kinds or "add" not in parts or count * SIZES[kind] > 16 or "global" not in parts:
        raise low.unsupported(f"a vector of {count} {kind}")
    elements = low.split(news[1:-1])
    old = low.split(olds[1:-1]) if olds else ["_"] * count
    if len(elements) != count or len(old) != count:
        raise low.unsupported(f"elements: {count} are declared")
    register, offset, wide, _ = low.address(memory)
    low.emit("check.vector", [register], GLOBAL, SIZES[kind], count, offset, wide)
    for i, (before, value) in enumerate(zip(old, elements, strict=True)):
        registers = [low.value(before, kind), register, low.value(value, kind)]
        at = offset + i * SIZES[kind]
        low.emit(f"atom.{kind}", registers, GLOBAL, SIZES[kind], 1, at, wide, ATOMICS["add"])


WINDOWS = {
    "shared": SHARED_WINDOW,
    "shared::cta": SHARED_WINDOW,
    "shared::cluster": SHARED_WINDOW,
    "local": LOCAL_WINDOW,
    "param": PARAM_WINDOW,
    "global": 0,
    "const": 0,
}


@rule("cvta", allow=f"to {' '.join(WINDOWS)}")
def cvta(low: Lowering, parts: list[str], operands: list[str]) -> None:
    window = next(WINDOWS[part] for part in parts if part in WINDOWS)
    registers = values(low, "u64", operands)
    low.emit("cvta", registers, -window if "to" in parts else window)


@rule("isspacep", allow=" ".join(WINDOWS))
def isspacep(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers = [low.value(operands[0], "pred"), low.value(operands[1], "u64")]
    if parts[1] in ("shared", "shared::cta"):
        return low.emit("isspacep.own", registers)
    low.emit("isspacep", registers, WINDOWS[parts[1]])


@rule("cp", allow=f"ca cg {' '.join(SPACES)} wait_all {MODIFIERS}")
def cp(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if asynchronous(low, parts, operands):
        return
    only(low, parts, f"async ca cg {' '.join(SPACES)} commit_group wait_group wait_all")
    name = ".".join(parts)
    if name == "cp.async.commit_group":
        return low.emit("cp.async.commit", [])
    if name == "cp.async.wait_group":
        return low.emit("cp.async.wait_group", [], int(operands[0], 0))
    if name == "cp.async.wait_all":
        return low.emit("cp.async.wait_all", [])
    if parts[1] != "async" or parts[2] not in ("ca", "cg"):
        raise low.unsupported(f"instruction {name}")
    to, to_offset, to_wide, _ = low.address(operands[0])
    source, source_offset, _, _ = low.address(operands[1])
    size = low.value(operands[3], "b32") if len(operands) > 3 else -1
    if len(operands) > 3 and low.kind(operands[3]) in ("b64", "u64"):
        size = -1  # a cache policy, not a size
    low.emit("cp.async", [to, source, size], int(operands[2], 0), to_offset, source_offset, to_wide)
