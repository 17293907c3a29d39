"""A layer that Python exports and compiles, run by a C++ program: examples/aot, as its docs say."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from checks import same_bits
from conftest import why_absent

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "aot"

pytestmark = pytest.mark.skipif(why_absent("cpu") is not None, reason=str(why_absent("cpu")))


def call(*command, expect=0):
    # cmake and ninja are those that pip put beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the package, the cases and the program."""
    folder = tmp_path_factory.mktemp("aot")
    call(sys.executable, EXAMPLE / "export.py", folder)
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    call("cmake", "-S", EXAMPLE, "-B", folder, "-G", "Ninja", prefix)
    call("cmake", "--build", folder)
    return folder


def run(folder, *cases, **options):
    library = find_spec("capmoe_kernels._cpu").origin
    return call(folder / "aot_moe", folder / "moe.pt2", library, *cases, **options)


def test_cpp_gives_the_bits_of_python(built):
    out = run(built, built / "case_7.bin", built / "case_300.bin")
    assert out == "T = 7: the same bits as in Python\nT = 300: the same bits as in Python\n"


def test_cpp_notices_another_bit(built):
    """The comparison above can fail."""
    changed = bytearray((built / "case_7.bin").read_bytes())
    changed[-4] ^= 1
    (built / "changed.bin").write_bytes(changed)
    out = run(built, built / "case_300.bin", built / "changed.bin", expect=1)
    assert out == "T = 300: the same bits as in Python\nT = 7: DIFFERENT\n"


def test_any_length_in_python(built):
    """The package in Python, no token and one included."""
    torch.manual_seed(0)  # as export.py does before it makes the layer
    layer = runpy.run_path(str(EXAMPLE / "export.py"))["Layer"]()
    package = torch._inductor.aoti_load_package(str(built / "moe.pt2"))
    for count in (0, 1, 33):
        tokens = torch.randn(count, 64)
        assert same_bits(package(tokens), layer(tokens))


def test_the_library_needs_no_python():
    """C++ loads it without an interpreter: Python's functions may be missing."""
    library = find_spec("capmoe_kernels._cpu").origin
    needed = [line.split() for line in call("nm", "-D", "--undefined-only", library).splitlines()]
    assert [line for line in needed if line[-1].startswith("Py")] == [["w", "PyModuleDef_Init"]]
