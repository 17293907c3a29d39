"""What ptxas gives the kernels of a module: registers and local memory. Cached by content."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from ..build import CACHE, _digest
from .objects import nvcc

_KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame.*?Used (\d+) registers", re.DOTALL
)


@functools.cache
def resources(ptx: str, arch: str) -> dict[str, tuple[int, int]]:
    """(registers, bytes of local memory) a thread, by kernel.

    Raises:
        RuntimeError: ptxas refuses the module.
    """
    target = re.search(r"^\s*\.target\s+(sm_\w+)", ptx, re.MULTILINE)[1]
    arch = target if target.startswith(arch) else arch
    path = CACHE / f"ptxas-{_digest(arch.encode(), ptx.encode())}.json"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(_run_ptxas(ptx, arch)))
        part.replace(path)
    return {name: tuple(numbers) for name, numbers in json.loads(path.read_text()).items()}


def _run_ptxas(ptx: str, arch: str) -> dict[str, tuple[int, int]]:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        source = Path(scratch) / "module.ptx"
        source.write_text(ptx)
        command = [nvcc(), "-cubin", f"-arch={arch}", "-Xptxas", "-v", str(source), "-o"]
        done = subprocess.run(
            [*command, str(Path(scratch) / "out")], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"ptxas refuses a module:\n{done.stdout}{done.stderr}")
    found = _KERNEL.findall(done.stdout + done.stderr)
    return {name: (int(registers), int(stack)) for name, stack, registers in found}
