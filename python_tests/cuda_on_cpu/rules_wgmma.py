"""Rules for warpgroups: wgmma with its fence, commit_group and wait_group, and setmaxnreg."""

from __future__ import annotations

import math
import re

from .lower import Lowering
from .rules import TYPES, rule, values
from .rules_warp import ALIGNED, emit_sync

# Of each type of A: what B and D may be, and whether the four modifiers of operands are there.
FLOAT8 = ("e4m3", "e5m2")
INTEGERS = ("s8", "u8")
TYPES_OF_B = {
    **{kind: (kind,) for kind in ("f16", "bf16", "tf32")},
    **dict.fromkeys(FLOAT8, FLOAT8),
    **dict.fromkeys(INTEGERS, INTEGERS),
}
TYPES_OF_D = {
    "f16": ("f32", "f16"),
    "bf16": ("f32",),
    "tf32": ("f32",),
    **dict.fromkeys(FLOAT8, ("f32", "f16")),
    **dict.fromkeys(INTEGERS, ("s32",)),
}
DEPTHS = {"f16": 16, "bf16": 16, "tf32": 8} | dict.fromkeys((*FLOAT8, *INTEGERS), 32)
SHAPES = [f"m64n{n}k{k}" for n in range(8, 257, 8) for k in (8, 16, 32)]
FROM_REGISTERS, TRANSPOSE_A, TRANSPOSE_B, NEGATE_A, NEGATE_B = (1 << i for i in range(5))
SATURATE, SCALE_NEGATED = 32, 64


@rule(
    "wgmma",
    allow=f"mma_async fence commit_group wait_group sync aligned satfinite {' '.join(SHAPES)} "
    "tf32 e4m3 e5m2",
)
def wgmma(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if low.module.target != "sm_90a":
        raise low.unsupported(f"wgmma for {low.module.target}: it needs sm_90a")
    if parts[2:4] != ["sync", "aligned"]:
        raise low.unsupported("wgmma without .sync.aligned")
    name = ".".join(parts[:2])
    if name == "wgmma.mma_async":
        return multiply(low, parts, operands)
    if len(parts) != 4:
        raise low.unsupported("modifiers")
    left = int(operands[0], 0) if name == "wgmma.wait_group" else 0
    if left < 0:
        raise low.unsupported(f"{left} groups")
    emit_sync(low, name, [], ALIGNED, left)


def multiply(low: Lowering, parts: list[str], operands: list[str]) -> None:
    d, a, b = parts[-3:]
    n, k = (int(size) for size in re.fullmatch(r"m64n(\d+)k(\d+)", parts[4]).groups())
    integers = a in INTEGERS
    if k != DEPTHS[a] or b not in TYPES_OF_B[a] or d not in TYPES_OF_D[a]:
        raise low.unsupported("shape or types")
    if integers and n > 32 and n % 16:
        raise low.unsupported(f"N of {n} for integers")
    if len(parts) != 8 + ("satfinite" in parts) or ("satfinite" in parts and not integers):
        raise low.unsupported("modifiers")
    accumulators = low.split(operands[0][1:-1])
    if len(accumulators) != n // (4 if d == "f16" else 2):
        raise low.unsupported(f"{len(accumulators)} accumulators")
    from_registers = operands[1].startswith("{")
    fragments = low.split(operands[1][1:-1]) if from_registers else [operands[1]]
    if len(fragments) != (4 if from_registers else 1):
        raise low.unsupported(f"{len(fragments)} registers of A")
    for register in [*accumulators, *(fragments if from_registers else ())]:
        if low.kind(register) not in ("b32", "f32", "u32", "s32", "f16x2"):
            raise low.unsupported(f"{register} is no register of 32 bits")
    for descriptor in operands[2:3] if from_registers else operands[1:3]:
        if low.kind(descriptor) not in ("b64", "u64", "s64"):
            raise low.unsupported(f"{descriptor} is no register of 64 bits")
    flags = SATURATE if "satfinite" in parts else 0
    flags |= FROM_REGISTERS if from_registers else 0
    registers = values(low, "b32", accumulators)
    registers += values(low, "b32" if from_registers else "b64", fragments)
    registers.append(low.value(operands[2], "b64"))
    registers.append(low.value(operands[3].lstrip("!"), "pred"))
    flags |= SCALE_NEGATED if operands[3].startswith("!") else 0
    flags |= operand_flags(low, a, operands[4:], from_registers)
    emit_sync(low, "wgmma.mma", registers, ALIGNED, n, TYPES[a], TYPES[b], TYPES[d], flags)


def operand_flags(low: Lowering, a: str, given: list[str], from_registers: bool) -> int:
    """imm-scale-a and -b, then, of 16-bit types, imm-trans-a (of a descriptor) and -b."""
    transposes = (0 if from_registers else TRANSPOSE_A, TRANSPOSE_B) if DEPTHS[a] == 16 else ()
    names = [] if a in INTEGERS else [NEGATE_A, NEGATE_B, *(t for t in transposes if t)]
    if len(given) != len(names):
        raise low.unsupported(f"{len(given)} immediates where there are {len(names)}")
    flags = 0
    for text, flag in zip(given, names, strict=True):
        value = int(text, 0)
        negates = flag in (NEGATE_A, NEGATE_B)
        if value not in ((1, -1) if negates else (0, 1)):
            raise low.unsupported(f"immediate {text}")
        flags |= flag if value == (-1 if negates else 1) else 0
    return flags


def registers_at_entry(directives: str) -> int:
    """Per thread, as ptxas would allot them; 0 where the kernel does not bound them."""
    found = {
        name: [int(n) for n in numbers.replace(" ", "").split(",") if n]
        for name, numbers in re.findall(r"\.(\w+)\s+(\d[\d, ]*)", directives)
    }
    if "maxnreg" in found:
        return found["maxnreg"][0]
    threads = math.prod(found.get("reqntid") or found.get("maxntid") or [0])
    blocks = (found.get("minnctapersm") or [0])[0]
    if not threads or not blocks:
        return 0
    return min(65536 // (threads * blocks) // 8 * 8, 256)


@rule("setmaxnreg", allow="inc dec sync aligned")
def setmaxnreg(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if low.module.target != "sm_90a":
        raise low.unsupported(f"setmaxnreg for {low.module.target}: it needs sm_90a")
    count = int(operands[0], 0)
    if parts[2:] != ["sync", "aligned", "u32"] or count % 8 or not 24 <= count <= 256:
        raise low.unsupported(f"{count} registers: a multiple of 8 from 24 to 256")
    before = registers_at_entry(low.entry.directives)
    emit_sync(low, "setmaxnreg", [], ALIGNED, count, parts[1] == "inc", before)
