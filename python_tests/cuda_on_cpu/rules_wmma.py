"""Rules for wmma.load, wmma.mma and wmma.store, whose fragments PTX leaves opaque."""

from __future__ import annotations

import re

from .lower import Lowering
from .rules import TYPES, rule, values
from .rules_memory import SPACES, space_of
from .rules_warp import ALIGNED, emit_sync

SHAPES = ("m16n16k16", "m32n8k16", "m8n32k16", "m16n16k8")
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8, "f32": 32, "s32": 32}
PLACES = "global shared shared::cta"


def extent(low: Lowering, parts: list[str], matrix: str, kind: str) -> tuple[int, int, int]:
    """Rows, columns, and the registers of a fragment; of A and B in f16 they are always eight."""
    shape = next(part for part in parts if part in SHAPES)
    m, n, k = (int(size) for size in re.findall(r"\d+", shape))
    if (k == 8) != (kind == "tf32") and matrix in "ab":
        raise low.unsupported(f"{shape} of {kind}")
    if (kind in ("f32", "s32")) == (matrix in "ab") and kind != "f16":
        raise low.unsupported(f"a fragment of {kind} for {matrix}")
    rows, columns = {"a": (m, k), "b": (k, n)}.get(matrix, (m, n))
    wide = kind == "f16" and matrix in "ab"
    return rows, columns, 8 if wide else rows * columns * BITS[kind] // 1024


@rule(
    "wmma",
    allow=f"load store mma a b c d sync aligned row col satfinite {PLACES} {' '.join(SHAPES)}",
)
def wmma(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if "sync" not in parts or "aligned" not in parts:
        raise low.unsupported("wmma without .sync.aligned")
    if parts[1] == "mma":
        return multiply(low, parts, operands)
    matrix, kind = parts[2], parts[-1]
    if (parts[1] == "store") != (matrix == "d"):
        raise low.unsupported(f"{parts[1]} of {matrix}")
    memory, vector = operands[:2] if parts[1] == "store" else (operands[1], operands[0])
    rows, columns, count = extent(low, parts, matrix, kind)
    elements = low.split(vector[1:-1])
    if len(elements) != count:
        raise low.unsupported(f"{len(elements)} registers, not {count}")
    by_column = parts[5] == "col"
    stride = operands[2] if len(operands) > 2 else str(rows if by_column else columns)
    register, offset, wide, variable = low.address(memory)
    space = space_of([part for part in parts if part in SPACES], variable)
    flags = wide | by_column << 1 | space << 2
    registers = [register, *values(low, "b32", [stride, *elements])]
    shape = rows | columns << 8
    emit_sync(low, f"wmma.{parts[1]}", registers, ALIGNED, shape, TYPES[kind], count, offset, flags)


def multiply(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """wmma.mma.sync.aligned.layout.layout.shape.types; of f16 only D and C are named."""
    saturates = "satfinite" in parts
    kinds = [part for part in parts[7:] if part != "satfinite"]
    if len(kinds) == 2:
        kinds = [kinds[0], "f16", "f16", kinds[1]]
    d, a, b, c = kinds
    if a != b or (d != c and a != "f16") or (saturates and d != "s32"):
        raise low.unsupported("types or modifiers")
    if (d == "s32") != (a in ("s8", "u8")) or ("f16" in (c, d) and a != "f16"):
        raise low.unsupported("types")
    shape = next(part for part in parts if part in SHAPES)
    m, n, k = (int(size) for size in re.findall(r"\d+", shape))
    counts = [extent(low, parts, x, kind)[2] for x, kind in zip("dabc", kinds, strict=True)]
    vectors = [low.split(vector[1:-1]) for vector in operands]
    if [len(vector) for vector in vectors] != counts:
        raise low.unsupported(f"registers, not {counts}")
    registers = [r for vector in vectors for r in values(low, "b32", vector)]
    sizes, flags = m | n << 8 | k << 16, saturates | counts[1] << 8 | counts[2] << 16
    emit_sync(low, "wmma.mma", registers, ALIGNED, sizes, TYPES[a], TYPES[c], TYPES[d], flags)
