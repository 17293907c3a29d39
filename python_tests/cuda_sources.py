"""The CUDA sources under test: csrc/cuda, or a copy of it with a bug planted in it."""

from __future__ import annotations

import functools
import hashlib
import shutil
from contextlib import contextmanager
from pathlib import Path

from cuda_on_cpu import compile_cuda
from cuda_on_cpu.build import CACHE

CSRC = Path(__file__).parent.parent / "csrc"
_folders = [CSRC / "cuda"]  # the last one is in use
_made: dict[Path, dict] = {}


def folder() -> Path:
    """Where the kernels' sources are."""
    return _folders[-1]


def per_sources(function):
    """Caches a function of the sources: what it made of a planted bug goes with the bug."""

    @functools.wraps(function)
    def cached(*args):
        results = _made.setdefault(folder(), {})
        key = (function, *args)
        if key not in results:
            results[key] = function(*args)
        return results[key]

    return cached


@per_sources
def stamp() -> str:
    """Changes with any header or source."""
    paths = [folder().parent / "options.h", *sorted(folder().glob("*.*"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def compiled(source: str | Path, arch: str = "sm_80") -> str:
    """PTX of text that includes headers of the folder, or of a file in it."""
    if isinstance(source, str):
        return compile_cuda(f"// {stamp()}\n{source}", arch, (f"-I{folder()}",))
    return compile_cuda(source, arch, (f"-DCAPMOE_SOURCES=0x{stamp()}",))


@contextmanager
def planted(file: str, old: str, new: str):
    """Within it the sources are a copy in which ``old``, which ``file`` has once, is ``new``."""
    text = (CSRC / "cuda" / file).read_text()
    assert text.count(old) == 1, f"{file} has this {text.count(old)} times: {old}"
    name = hashlib.sha256("\0".join((file, old, new, stamp())).encode()).hexdigest()[:12]
    copy = CACHE / f"planted-{name}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CSRC / "cuda", copy / "cuda")
    shutil.copy(CSRC / "options.h", copy)
    (copy / "cuda" / file).write_text(text.replace(old, new))
    _folders.append(copy / "cuda")
    try:
        yield
    finally:
        _made.pop(_folders.pop(), None)
        shutil.rmtree(copy)
