"""Compiles C++ and CUDA files to objects, and links them; cached by content under build/."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..build import CACHE, _digest, _run

JOBS = min(2, os.cpu_count() or 1)


@functools.cache
def nvcc() -> str:
    """The path of nvcc.

    Raises:
        RuntimeError: if there is none.
    """
    path = shutil.which("nvcc")
    if path is None:
        raise RuntimeError("there is no nvcc on PATH")
    return path


@functools.cache
def cuda_include() -> Path:
    """Where nvcc's own headers are; nvcc may be a wrapper elsewhere, so it is asked."""
    command = [nvcc(), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Path(re.search(r'^#\$ INCLUDES="-I([^"]+)"', text, re.MULTILINE)[1])


@contextlib.contextmanager
def build_lock(name: str):
    """One process builds; the others find what it built."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def with_includes(path: Path, seen: set[Path] | None = None) -> list[Path]:
    """A source and the files it includes by quotes, which are those of this repository."""
    seen = set() if seen is None else seen
    path = path.resolve()
    if path in seen or not path.exists():
        return []
    seen.add(path)
    out = [path]
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
        out += with_includes(path.parent / name, seen)
    return out


def object_path(command: list[str], source: Path) -> Path:
    texts = [file.read_bytes() for file in with_includes(source)]
    return CACHE / f"{source.stem}-{_digest(' '.join(command).encode(), *texts)}.o"


def compile_objects(commands: dict[Path, list[str]]) -> list[Path]:
    """The object of each source; ``commands`` lack the source and the output."""
    wanted = {source: object_path(command, source) for source, command in commands.items()}
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:

        def build(source: Path) -> None:
            made = Path(scratch) / wanted[source].name
            _run([*commands[source], "-c", str(source), "-o", str(made)])
            made.replace(wanted[source])

        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(build, [s for s, path in wanted.items() if not path.exists()]))
    return list(wanted.values())


def _link(command: list[str], name: str) -> None:
    """Functions that nobody has written are named once each: the linker says it at length."""
    try:
        _run(command)
    except RuntimeError as error:
        missing = sorted(set(re.findall(r"undefined reference to `(.*)'", str(error))))
        if not missing:
            raise
        raise RuntimeError("\n".join([f"{name} lacks", *missing])) from None


def link(objects: list[Path], name: str, options: list[str]) -> Path:
    """A shared library called ``name``, in a folder of its own.

    Raises:
        RuntimeError: something is missing.
    """
    key = _digest(" ".join(options).encode(), *(path.name.encode() for path in objects))
    library = CACHE / f"linked-{key}" / name
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        part = library.with_suffix(".part")
        _link(["g++", "-shared", *map(str, objects), "-o", str(part), *options], name)
        part.replace(library)
    return library
