"""SASS instructions that a launch would execute: what ptxas makes of each PTX line, times its runs.

An estimate: ptxas moves, merges and copies instructions. Where it has copied a loop's body, which
memory accesses, shuffles and matrix products in it tell, each copy takes its share of the runs.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median

from .classes import CLASSES, opcode_of, sass_class
from .emulate import Kernel, Report
from .toolkit import assemble, disassemble


@dataclass
class SassCounts:
    """``total`` executed warp instructions, by class; ``static``: instructions in the cubin."""

    total: float
    classes: dict[str, float]
    static: int


# Of PTX instructions that become one SASS instruction of a kind that is not used otherwise: it.
ANCHORS = {
    "ld": r"LD[GSL]?",
    "st": r"ST[GSL]?",
    "atom": r"ATOM[GS]?",
    "red": r"RED|REDG|ATOM[GS]?",
    "cp": r"LDGSTS",
    "ldmatrix": r"LDSM",
    "stmatrix": r"STSM",
    "mma": r"[HI]MMA",
    "shfl": r"SHFL",
    "bar": r"BAR",
    "barrier": r"BAR",
    "fma": r"[FD]FMA",
}


def _with_line_numbers(ptx: str, lines: set[int]) -> str:
    """The PTX, whose lines with instructions are the source that the line table will name."""
    out, debug = [], False
    for number, line in enumerate(ptx.splitlines(), 1):
        word = line.split(None, 1)[0] if line.strip() else ""
        debug = debug or word == ".section"
        if debug or word in (".loc", ".file"):
            debug = debug and line.strip() != "}"
            continue
        if number in lines:
            out.append(f".loc 1 {number} 0")
        out.append(line)
    return "\n".join([*out, '.file 1 "ptx"', ""])


def static_sass(ptx: str, name: str, lines: set[int], arch: str) -> dict[int, Counter[str]]:
    """Opcodes of SASS by PTX line, 0 for those without one; not the padding behind the code."""
    cubin, _ = assemble(_with_line_numbers(ptx, lines), arch)
    found: dict[int, Counter[str]] = defaultdict(Counter)
    line, inside = 0, False
    for text in disassemble(cubin).splitlines():
        section = re.match(r"\s*\.section\s+\.text\.([\w$]+)", text)
        if section:
            line, inside = 0, section[1] == name
        place = re.match(r'\s*//## File "[^"]*", line (\d+)', text)
        if place:
            line = int(place[1])
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text)
        if inside and instruction and instruction[1] != "NOP":
            found[line][instruction[1]] += 1
    return found


def _blocks(kernel: Kernel) -> dict[int, int]:
    """Of each PTX line, the number of its basic block."""
    low = kernel.lowering
    starts = {one.place for one in low.instructions if one.target is not None}
    starts |= set(low.labels.places.values())
    blocks, block = {}, 0
    for index, one in enumerate(low.instructions):
        block += index in starts
        blocks.setdefault(one.line, block)
        block += opcode_of(one.text)[0] in ("bra", "brx", "ret", "exit") if one.text else 0
    return blocks


def _copies(
    kernel: Kernel, sass: dict[int, Counter[str]], blocks: dict[int, int]
) -> dict[int, float]:
    """Of each basic block, how often ptxas has copied it."""
    seen = defaultdict(list)
    for one in kernel.lowering.instructions:
        root = opcode_of(one.text)[0] if one.text else ""
        if root not in ANCHORS or "param" in one.text:
            continue
        of_line = sass.get(one.line, {})
        same = sum(n for op, n in of_line.items() if re.fullmatch(ANCHORS[root], op.split(".")[0]))
        if same:
            seen[blocks[one.line]].append(same)
    return {block: max(1.0, median(counts)) for block, counts in seen.items()}


def sass_estimate(kernel: Kernel, report: Report, arch: str | None = None) -> SassCounts:
    """SASS instructions of the launch that made the report.

    Raises:
        RuntimeError: if ptxas or nvdisasm are not there, or refuse the PTX.
    """
    lines = {one.line for one in kernel.lowering.instructions if one.text}
    sass = static_sass(kernel.loaded.ptx, kernel.name, lines, arch or kernel.target)
    blocks = _blocks(kernel)
    copies = _copies(kernel, sass, blocks)
    static = sum(sum(opcodes.values()) for opcodes in sass.values())
    weighed = Counter()
    placed = 0
    for line, opcodes in sass.items():
        if line not in blocks:
            continue
        runs = report.executed.get(line, 0) / copies.get(blocks[line], 1.0)
        placed += sum(opcodes.values())
        for opcode, count in opcodes.items():
            weighed[sass_class(opcode)] += count * runs
    share = static / placed if placed else 0.0  # those without a line run as the others do
    classes = {name: weighed[name] * share for name in CLASSES if weighed[name]}
    return SassCounts(sum(classes.values()), classes, static)
