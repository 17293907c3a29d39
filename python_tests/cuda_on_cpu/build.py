"""Compiles the C++ core once, and CUDA sources to PTX; both are cached under build/ by content."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / "build" / "cuda_on_cpu"
# The core rounds as PTX says: nothing may be contracted, or moved across a change of rounding mode.
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-ffp-contract=off", "-frounding-math", "-Wall"]


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _build(compiler: str, sources: list[Path], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        objects = [str(Path(scratch) / f"{path.stem}.o") for path in sources]
        commands = [
            [compiler, *FLAGS, "-c", str(path), "-o", out]
            for path, out in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        linked = Path(scratch) / "core.so"
        _run([compiler, "-shared", *objects, "-o", str(linked)])
        linked.replace(library)


@functools.cache
def core() -> ctypes.CDLL:
    """The emulator's C++ core, compiled when its sources have changed."""
    sources = sorted((HERE / "core").glob("*.cpp"))
    headers = sorted((HERE / "core").glob("*.h"))
    compiler = os.environ.get("CXX", "g++")
    texts = [path.read_bytes() for path in (*sources, *headers)]
    library = CACHE / f"core-{_digest(' '.join([compiler, *FLAGS]).encode(), *texts)}.so"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # test processes start together
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(compiler, sources, library)
    loaded = ctypes.CDLL(str(library))
    loaded.emu_warnings.restype = ctypes.c_char_p
    loaded.emu_take_output.restype = ctypes.c_char_p
    return loaded


def compile_cuda(source: str | Path, arch: str = "sm_80", flags: tuple[str, ...] = ()) -> str:
    """PTX of a CUDA file, or of CUDA text, by nvcc.

    Raises:
        RuntimeError: if there is no nvcc, or it refuses the source.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("compile_cuda needs nvcc on PATH")
    text = source.read_text() if isinstance(source, Path) else source
    command = [nvcc, f"-arch={arch}", "-std=c++17", "-ptx", "-lineinfo", *flags]
    if isinstance(source, Path):
        command.append(f"-I{source.parent}")
    ptx = CACHE / f"{_digest(' '.join(command).encode(), text.encode())}.ptx"
    if not ptx.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            name = source.name if isinstance(source, Path) else "kernel.cu"
            copy, out = Path(scratch) / name, Path(scratch) / "out.ptx"
            copy.write_text(text)
            _run([*command, str(copy), "-o", str(out)])
            out.replace(ptx)
    return ptx.read_text()
