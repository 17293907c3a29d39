"""NVIDIA's assembler and disassembler, from the toolkit or Triton's wheel; results are cached."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

from .build import CACHE, _digest, _run


@functools.cache
def find_tool(name: str) -> str | None:
    """Where a program of the CUDA toolkit is, None where it is nowhere."""
    found = shutil.which(name)
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        found = str(bundled) if bundled.exists() else None
    return found


def tool(name: str) -> str:
    found = find_tool(name)
    if found is None:
        raise RuntimeError(f"{name} is neither on PATH nor in a Triton wheel")
    return found


def _cached(suffix: str, make, *key: str) -> Path:
    """build/'s file for the key, which ``make(path)`` writes if it is not there."""
    path = CACHE / f"{_digest(*(part.encode() for part in key))}{suffix}"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            out = Path(scratch) / "out"
            make(out)
            out.replace(path)
    return path


def assemble(ptx: str, arch: str) -> tuple[Path, str]:
    """The cubin that ptxas makes of PTX for an architecture, and what it says of each kernel.

    Raises:
        RuntimeError: if there is no ptxas, or it refuses the PTX.
    """
    command = [tool("ptxas"), f"-arch={arch}", "-lineinfo", "-v"]

    def make(out: Path) -> None:
        source = out.with_suffix(".ptx")
        source.write_text(ptx)
        _run([*command, str(source), "-o", str(out)])

    def listen(out: Path) -> None:
        source, cubin = out.with_suffix(".ptx"), out.with_suffix(".cubin")
        source.write_text(ptx)
        words = [*command, str(source), "-o", str(cubin)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        out.write_text(done.stdout + done.stderr)

    cubin = _cached(".cubin", make, *command, ptx)
    return cubin, _cached(".ptxas", listen, *command, ptx, "says").read_text()


def disassemble(cubin: Path) -> str:
    """SASS with the lines that the cubin's line table names."""
    command = [tool("nvdisasm"), "-g", "-c", str(cubin)]

    def make(out: Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        out.write_text(done.stdout)

    return _cached(".sass", make, command[0], cubin.name).read_text()
