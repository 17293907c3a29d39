"""Launchers bind to the stand-in although another libcudart was loaded for everybody before."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_on_cpu.runtime import library_path

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")

# Another process, in which the other library comes first, as where torch is built for CUDA.
PROGRAM = """
import ctypes, sys
other = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
assert ctypes.CDLL(None).cudaGetDevice(None) == 4321
import torch
from cuda_on_cpu import Const, launchers, runtime
x, y = torch.arange(300.0), torch.ones(300)
with runtime.recording() as record:
    assert launchers.call("launch_saxpy", Const(x), y, 2.0, 300, None) == 0
assert torch.equal(y, 2 * x + 1), y
assert record.names == ["saxpy"]
print("bound to the stand-in")
"""


@functools.cache
def functions() -> list[str]:
    """Those of the runtime that the stand-in has."""
    command = ["nm", "-D", "--defined-only", str(library_path())]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split()[-1] for line in lines]
    return [name for name in names if name.startswith(("cuda", "__cuda"))]


@pytest.fixture(scope="module")
def impostor(tmp_path_factory) -> Path:
    """A library of the real one's name, whose functions do nothing but say 4321."""
    folder = tmp_path_factory.mktemp("cudart")
    source, library = folder / "impostor.c", folder / "libcudart.so.13"
    source.write_text("".join(f"int {name}() {{ return 4321; }}\n" for name in functions()))
    command = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcudart.so.13"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return library


def test_the_impostor_has_what_launchers_call(impostor):
    assert {"cudaLaunchKernel", "__cudaRegisterFatBinary", "cudaMalloc"} <= set(functions())
    assert ctypes.CDLL(str(impostor)).cudaMalloc() == 4321


def test_launchers_do_not_see_it(impostor):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM, str(impostor)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "bound to the stand-in", done.stdout + done.stderr
