"""Classes of instructions, of PTX and of SASS: by what they ask of the machine."""

from __future__ import annotations

import re

from .instructions import Instruction
from .parse import SIZES

CLASSES = (
    "integer",
    "float",
    "half",
    "double",
    "conversion",
    "special function",
    "tensor",
    "memory.global",
    "memory.shared",
    "memory.local",
    "memory.constant",
    "memory.generic",
    "shuffle/vote",
    "barrier/sync",
    "control",
    "move/other",
)

_SPACES = {"global": "global", "shared": "shared", "local": "local"}
_SPACES |= {"const": "constant", "param": "constant", "shared::cta": "shared"}
_SPACES |= {"shared::cluster": "shared"}


def _table(**classes: str) -> dict[str, str]:
    return {
        root: name.replace("_", "/") for name, roots in classes.items() for root in roots.split()
    }


_PTX = _table(
    control="bra brx call ret exit trap brkpt nanosleep",
    shuffle_vote="shfl vote match redux elect activemask",
    barrier_sync="bar barrier membar fence mbarrier griddepcontrol",
    tensor="mma wgmma tcgen05 wmma",
    conversion="cvt",
    move_other="mov cvta isspacep selp slct createpolicy prefetch prefetchu applypriority "
    "setmaxnreg",
)
_MEMORY = ("ld", "ldu", "st", "atom", "red", "cp", "ldmatrix", "stmatrix")
_SPECIAL = ("rcp", "sqrt", "rsqrt", "sin", "cos", "ex2", "lg2", "tanh")
_FLOATS = {"f32": "float", "f64": "double"}
_FLOATS |= dict.fromkeys(("f16", "f16x2", "bf16", "bf16x2"), "half")


def opcode_of(text: str) -> list[str]:
    """The parts of a statement's opcode, its guard left away."""
    return re.sub(r"^@!?\S+\s+", "", text).split(None, 1)[0].rstrip(";").split(".")


def ptx_class(text: str) -> str:
    """The class of a PTX statement."""
    root, *rest = opcode_of(text)
    if root in _MEMORY:
        if root == "cp" and not any(part in _SPACES for part in rest):
            return "barrier/sync"  # commit and wait
        spaces = [_SPACES[part] for part in rest if part in _SPACES]
        # A copy to shared memory from global memory asks most of the latter.
        space = "global" if "global" in spaces else spaces[0] if spaces else "generic"
        return f"memory.{'shared' if root.endswith('matrix') else space}"
    if root in _PTX:
        return _PTX[root]
    kind = next((part for part in reversed(rest) if part in SIZES), "")
    if root in _SPECIAL and kind != "f64":
        return "special function"
    if root in ("setp", "set"):
        kind = next((part for part in rest if part in _FLOATS), kind)
    return _FLOATS.get(kind, "integer")


def by_line(instructions: list[Instruction], executed) -> tuple[dict[int, int], dict[str, int]]:
    """Runs of each line, and of each class. What a statement becomes here counts once."""
    runs: dict[tuple[int, str], int] = {}
    for one, count in zip(instructions, executed, strict=True):
        if one.text:
            runs.setdefault((one.line, one.text), count)
    lines: dict[int, int] = {}
    classes = dict.fromkeys(CLASSES, 0)
    for (line, text), count in runs.items():
        lines[line] = max(lines.get(line, 0), count)
        classes[ptx_class(text)] += count
    return lines, {name: count for name, count in classes.items() if count}


_SASS = _table(
    integer="IADD IADD3 IADD32I VIADD IMAD IMUL IMNMX VIMNMX VIMNMX3 VIADDMNMX LEA LOP LOP3 LOP32I "
    "SHF SHL SHR ISETP ISCADD IABS POPC FLO BREV PRMT BMSK SGXT IDP IDP4A PLOP3 VABSDIFF VABSDIFF4",
    float="FADD FADD2 FADD32I FMUL FMUL2 FMUL32I FFMA FFMA2 FFMA32I FSETP FSET FMNMX FMNMX3 "
    "FSWZADD FCHK FSEL",
    half="HADD2 HMUL2 HFMA2 HSETP2 HSET2 HMNMX2 HADD2_32I HFMA2_32I HMUL2_32I VHMNMX",
    double="DADD DMUL DFMA DSETP DMNMX",
    conversion="F2F F2I I2F F2FP I2FP F2IP I2I I2IP FRND",
    tensor="HMMA IMMA DMMA BMMA HGMMA IGMMA QGMMA QMMA WARPGROUP WARPGROUPSET",
    shuffle_vote="SHFL VOTE MATCH REDUX ELECT CREDUX",
    barrier_sync="BAR MEMBAR DEPBAR LDGDEPBAR SYNCS ERRBAR CCTL FENCE ARRIVES UCGABAR_ARV "
    "UCGABAR_WAIT WARPSYNC UTMACMDFLUSH UTMACCTL ACQBULK PREEXIT",
    control="BRA BRX BRXU EXIT RET CALL BSSY BSYNC BREAK BMOV JMP JMX BPT KILL NANOSLEEP YIELD",
)
_IN_SPACES = {
    "global": "LDG STG LDGSTS ATOMG RED REDG UTMALDG UTMASTG UTMAREDG UBLKCP UBLKRED UTMAPF LDGMC",
    "shared": "LDS STS LDSM STSM ATOMS STAS",
    "local": "LDL STL",
    "constant": "LDC LDCU ULDC",
    "generic": "LD ST ATOM",
}
for _space, _opcodes in _IN_SPACES.items():
    _SASS |= dict.fromkeys(_opcodes.split(), f"memory.{_space}")
_SASS["MUFU"] = "special function"


def sass_class(opcode: str) -> str:
    """The class of a SASS opcode. What is not known, as moves and selections, is move/other."""
    root, *rest = opcode.split(".")
    if root in ("IMAD", "UIMAD", "MOV") and rest[:1] == ["MOV"]:
        return "move/other"
    uniform = root[1:] if root.startswith("U") else root
    return _SASS.get(root) or _SASS.get(uniform, "move/other")
