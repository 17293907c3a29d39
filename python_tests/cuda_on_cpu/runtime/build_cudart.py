"""Compiles the stand-in for libcudart; whatever it lacks of CUDA's runtime is an error by name."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from ..build import CACHE, _digest
from .objects import build_lock, compile_objects, cuda_include, link

SOURCES = Path(__file__).parent / "cudart"
# Not libcudart.so.13: where torch has loaded the real one, the loader would take that.
NAME = "libcudart_standin.so"


def unsupported_calls() -> str:
    """C++ with every function of the runtime, weak: those of SOURCES replace theirs."""
    header = (cuda_include() / "cuda_runtime_api.h").read_text()
    names = sorted(set(re.findall(r"CUDARTAPI\s+(cuda\w+)\s*\(", header)))
    body = "\n".join(f"CALL({name})" for name in names)
    return (
        'extern "C" {\n'
        "int standin_unsupported(const char*);\n"
        "#define CALL(name) \\\n"
        "  __attribute__((weak)) int name() { return standin_unsupported(#name); }\n"
        f"{body}\n}}\n"
    )


@functools.cache
def cudart() -> Path:
    """The library's path.

    Raises:
        RuntimeError: if there is no nvcc, whose headers it needs, or a compiler refuses.
    """
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-Wall", "-Werror", "-isystem"]
    command.append(str(cuda_include()))
    with build_lock("cudart"):
        text = unsupported_calls()
        generated = CACHE / f"unsupported-{_digest(text.encode())}.cpp"
        if not generated.exists():
            generated.write_text(text)
        sources = [*sorted(SOURCES.glob("*.cpp")), generated]
        objects = compile_objects(dict.fromkeys(sources, command))
        return link(objects, NAME, [f"-Wl,-soname,{NAME}", "-Wl,--no-undefined"])
