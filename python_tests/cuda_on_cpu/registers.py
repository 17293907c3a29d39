"""Where names live: registers in a warp's memory, constants as registers set at its start."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from .errors import Unsupported
from .parse import SIZES, Statement

SHARED_WINDOW = 0x0100000000000000
PARAM_WINDOW = 0x0200000000000000
LOCAL_WINDOW = 0x0300000000000000

CONST32, CONST64, CONST_PREDICATE, SPECIAL = range(4)
GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CLUSTER = range(6)  # Space in machine.h

_SPECIAL_NAMES = [
    "tid.x",
    "tid.y",
    "tid.z",
    "ntid.x",
    "ntid.y",
    "ntid.z",
    "ctaid.x",
    "ctaid.y",
    "ctaid.z",
    "nctaid.x",
    "nctaid.y",
    "nctaid.z",
    "laneid",
    "warpid",
    "lanemask_eq",
    "lanemask_lt",
    "lanemask_le",
    "lanemask_gt",
    "lanemask_ge",
    "dynamic_smem_size",
    "total_smem_size",
    *(f"cluster_ctaid.{d}" for d in "xyz"),
    *(f"cluster_nctaid.{d}" for d in "xyz"),
    "cluster_ctarank",
    "cluster_nctarank",
    *(f"clusterid.{d}" for d in "xyz"),
    *(f"nclusterid.{d}" for d in "xyz"),
    "is_explicit_cluster",
    "envreg1",
    "envreg2",
]
SPECIALS = {"%" + name: index for index, name in enumerate(_SPECIAL_NAMES)}
# One SM, and a clock that counts instructions: nothing may depend on them.
FIXED = {"%smid": 0, "%gridid": 0, "%nsmid": 1, "%nwarpid": 64, "WARP_SZ": 32}
CLOCKS = ("%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo")


@dataclass
class Scope:
    """Names between two braces."""

    registers: dict[str, tuple[int, str]] = field(default_factory=dict)
    memory: dict[str, tuple[str, int]] = field(default_factory=dict)  # name: (space, address)


class Registers:
    """The names in scope, and the register or the address behind each."""

    def __init__(self) -> None:
        self.register_bytes = 0
        self.inits: list[tuple[int, int, int]] = []  # what the core sets when a warp starts
        self.constants: dict[tuple[int, int], int] = {}
        self.scopes: list[tuple[int, Scope]] = []
        self.outer = Scope()
        self.carry = -1
        self.statement: Statement | None = None

    def allocate(self, kind: str) -> int:
        offset = self.register_bytes
        size = SIZES[kind]
        self.register_bytes += 64 if size == 0 else 32 * max(size, 4)
        return offset

    def constant(self, value: int, kind: str) -> int:
        size = SIZES[kind]
        what = CONST_PREDICATE if size == 0 else CONST64 if size == 8 else CONST32
        value &= 2**64 - 1 if size == 8 else 2 ** (8 * size or 1) - 1
        if (what, value) not in self.constants:
            offset = self.allocate(kind)
            self.constants[what, value] = offset
            self.inits.append((offset, what, value))
        return self.constants[what, value]

    def carry_register(self) -> int:
        """The condition code's carry, of add.cc and its kind."""
        if self.carry < 0:
            self.carry = self.allocate("pred")
        return self.carry

    def find(self, name: str) -> tuple[int, str] | None:
        for _, scope in reversed(self.scopes):
            if name in scope.registers:
                return scope.registers[name]
        return None

    def find_memory(self, name: str) -> tuple[str, int] | None:
        for _, scope in reversed(self.scopes):
            if name in scope.memory:
                return scope.memory[name]
        return self.outer.memory.get(name)

    def halves(self, operand: str) -> list[int]:
        """The two registers of 64 bits that one of 128 is."""
        found = self.find(operand)
        if found is None or found[1] != "b128":
            raise self.unsupported(f"{operand} is no register of 128 bits")
        return [found[0], found[0] + 256]

    def kind(self, operand: str) -> str | None:
        """The declared type of a register."""
        found = self.find(operand)
        return found[1] if found else None

    def value(self, operand: str, kind: str) -> int:
        """The register of an operand: its own, or one that holds the constant."""
        operand = operand.strip()
        if operand == "_":
            return -1
        found = self.find(operand)
        if found:
            if (SIZES[found[1]] == 8) != (SIZES[kind] == 8):
                raise self.unsupported(f"{operand}, a register of .{found[1]}, as .{kind}")
            return found[0]
        if operand in SPECIALS:
            key = (SPECIAL, SPECIALS[operand])
            if key not in self.constants:
                self.constants[key] = self.allocate("pred" if "explicit" in operand else "b32")
                self.inits.append((self.constants[key], *key))
            return self.constants[key]
        if operand in FIXED:
            return self.constant(FIXED[operand], kind)
        memory = self.find_memory(operand)
        if memory:
            return self.constant(memory[1], kind)
        return self.constant(self.literal(operand, kind), kind)

    def literal(self, text: str, kind: str) -> int:
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            bits = int(text[2:], 16)
            if SIZES[kind] != 8:
                return bits
            value = struct.unpack("<f", struct.pack("<I", bits))[0]
            return struct.unpack("<Q", struct.pack("<d", value))[0]
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            bits = int(text[2:], 16)
            if kind != "f32":
                return bits
            value = struct.unpack("<d", struct.pack("<Q", bits))[0]
            return struct.unpack("<I", struct.pack("<f", value))[0]
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
            digits = text.rstrip("U")
            if re.fullmatch(r"-?0\d+", digits):
                return int(digits, 8)
            return int(digits, 0)
        if re.fullmatch(r"-?\d+\.\d*([eE][-+]?\d+)?", text):
            form = "<d" if kind == "f64" else "<f"
            return int.from_bytes(struct.pack(form, float(text)), "little")
        raise self.unsupported(f"operand {text}")

    def address(self, operand: str) -> tuple[int, int, bool, str | None]:
        """Of "[base+offset]": register, offset, whether it has 64 bits, and a variable's space."""
        inner = operand.strip()[1:-1].replace(" ", "")
        found = re.fullmatch(r"([%\w$.]+)(?:\+(-?\w+))?(?:-(\w+))?", inner)
        if not found:
            raise self.unsupported(f"address {operand}")
        base = found[1]
        offset = int(found[2] or "0", 0) - int(found[3] or "0", 0)
        register = self.find(base)
        if register:
            return register[0], offset, SIZES[register[1]] == 8, None
        memory = self.find_memory(base)
        if memory:
            return self.constant(memory[1], "b64"), offset, True, memory[0]
        return self.constant(self.literal(base, "b64"), "b64"), offset, True, None

    @staticmethod
    def split(text: str) -> list[str]:
        """Operands at the outermost commas."""
        out, depth, current = [], 0, ""
        for character in text:
            depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(character, 0)
            if character == "," and depth == 0:
                out.append(current.strip())
                current = ""
            else:
                current += character
        return [*out, current.strip()] if current.strip() else out

    def unsupported(self, what: str) -> Unsupported:
        statement = self.statement
        where = f"PTX line {statement.line}: {statement.text}: " if statement else ""
        return Unsupported(where + what)
