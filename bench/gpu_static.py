"""What is known of the kernels without a GPU: ``python -m bench.gpu_static``.

Reads the compiled module: registers, stack, shared memory and instructions of every kernel, held
against gpu_static.json, and prints the layer's floors on an A100 and an H100. ``--update`` rewrites
the table; a test fails where a kernel needs more than the table allows. Needs cuobjdump, of the
CUDA toolkit or of the triton package.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from . import gpu_counts
from .gpu_roofline import roofline

TABLE = Path(__file__).with_suffix(".json")

# A kind of instruction and how its name begins.
INSTRUCTIONS = {
    "hmma": ("HMMA",),
    "hgmma": ("HGMMA",),
    "ldsm": ("LDSM",),
    "cp_async_128": ("LDGSTS.E.BYPASS.LTC128B.128", "LDGSTS.E.BYPASS.128"),
    "tma_loads": ("UTMALDG",),
    "loads_128": ("LDG.E.128",),
    "stores_128": ("STG.E.128",),
    "local": ("LDL", "STL"),
}


class Kernel(NamedTuple):
    """One kernel as compiled for one architecture."""

    arch: str
    name: str
    registers: int
    stack: int
    shared: int
    instructions: Counter[str]

    def numbers(self) -> dict[str, int]:
        used = {kind: count for kind, count in self.instructions.items() if count}
        return {"registers": self.registers, "shared": self.shared, **used}


def cuobjdump() -> str | None:
    """The toolkit's, else the one in the triton package, else None."""
    found = shutil.which("cuobjdump")
    spec = find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        packed = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(packed) if packed.exists() else None
    return found


def compiled_module() -> Path | None:
    spec = find_spec("capmoe_kernels._cuda")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def read_kernels(module: Path) -> list[Kernel]:
    """Every kernel of the module, for every architecture it holds machine code of."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump is not on PATH, and the triton package is not installed")
    counted = dict(_instructions(tool, module))
    return [
        Kernel(arch, _short(name), registers, stack, shared, counted[arch, name])
        for arch, name, registers, stack, shared in _resources(tool, module)
    ]


def _lines(*command: str) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")


def _resources(tool: str, module: Path) -> Iterator[tuple[str, str, int, int, int]]:
    arch = name = ""
    for line in _lines(tool, "-res-usage", str(module)):
        if found := re.match(r"arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r" Function (\w+):", line):
            name = found[1]
        elif found := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            yield arch, name, int(found[1]), int(found[2]), int(found[3])


def _instructions(tool: str, module: Path) -> Iterator[tuple[tuple[str, str], Counter[str]]]:
    arch, counts = "", Counter[str]()
    for line in _lines(tool, "-sass", str(module)):
        if found := re.match(r"\s*arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function : (\w+)", line):
            counts = Counter()
            yield (arch, found[1]), counts  # which the lines that follow fill
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", line):
            for kind, names in INSTRUCTIONS.items():
                counts[kind] += found[1].startswith(names)


def _short(mangled: str) -> str:
    """``kernel<arguments>``, without what changes when another file is compiled."""
    tool = shutil.which("c++filt")
    if tool is None:
        raise FileNotFoundError("c++filt is not on PATH")
    plain = subprocess.run([tool, mangled], capture_output=True, text=True, check=True).stdout
    plain = plain.strip().replace("(anonymous namespace)::", "").replace("capmoe::cuda::", "")
    return re.sub(r"^void ", "", plain).split("(")[0]


def nvcc_release() -> str:
    """Of the nvcc on PATH, which is taken to have compiled the module; "" without one."""
    tool = shutil.which("nvcc")
    said = "" if tool is None else "".join(_lines(tool, "--version"))
    found = re.search(r"release ([\d.]+)", said)
    return found[1] if found else ""


def complaints(
    kernels: list[Kernel], table: dict[str, dict[str, dict[str, int]]], registers: bool = True
) -> list[str]:
    """What is worse than the table, or not in it, in words.

    ``registers``: whether their number is compared: another compiler needs another.
    """
    out = []
    for kernel in kernels:
        where = f"{kernel.name} for {kernel.arch}"
        if kernel.stack or kernel.instructions["local"]:
            count = kernel.instructions["local"]
            out.append(f"{where} uses {kernel.stack} bytes of stack, {count} accesses to it")
        allowed = table.get(kernel.arch, {}).get(kernel.name)
        if allowed is None:
            out.append(f"{where} is not in {TABLE.name}: run python -m bench.gpu_static --update")
            continue
        if registers and kernel.registers > allowed["registers"]:
            out.append(f"{where} has {kernel.registers} registers, not {allowed['registers']}")
        for kind in ("loads_128", "stores_128", "cp_async_128", "tma_loads", "hgmma"):
            if allowed.get(kind) and not kernel.instructions[kind]:
                out.append(f"{where} has lost its {kind}")
        if allowed.get("ldsm") and _per_load(kernel.instructions) < 0.95 * _per_load(allowed):
            out.append(f"{where} loads more per product than it did")
    return out


def _per_load(counts: dict[str, int] | Counter[str]) -> float:
    return counts.get("hmma", 0) / max(counts.get("ldsm", 0), 1)


def as_table(kernels: list[Kernel]) -> Table:
    table = Table(title="kernels as compiled (instructions are counted in the code, not executed)")
    for column in ("arch", "kernel", "regs", "stack", "HMMA", "HGMMA", "LDSM", "cp.async", "local"):
        table.add_column(column, justify="left" if column in ("arch", "kernel") else "right")
    for kernel in kernels:
        counts = kernel.instructions
        kinds = ("hmma", "hgmma", "ldsm", "cp_async_128", "local")
        numbers = (kernel.registers, kernel.stack, *(counts[kind] for kind in kinds))
        table.add_row(kernel.arch, kernel.name, *map(str, numbers))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", type=Path, default=compiled_module())
    parser.add_argument("--update", action="store_true", help=f"rewrite {TABLE.name}")
    arguments = parser.parse_args()
    console = Console(width=140)
    console.print(roofline())
    gpu_counts.print_counts(console)
    if arguments.module is None:
        raise SystemExit("capmoe_kernels._cuda was not built")
    kernels = read_kernels(arguments.module)
    console.print(as_table(kernels))
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if arguments.update:
        table["nvcc"] = nvcc_release()
        for arch in sorted({kernel.arch for kernel in kernels}):
            own = {kernel.name: kernel.numbers() for kernel in kernels if kernel.arch == arch}
            table[arch] = dict(sorted(own.items()))
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    found = complaints(kernels, table, table.get("nvcc") == nvcc_release())
    for line in found:
        console.print(line, markup=False)
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
