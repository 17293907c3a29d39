"""What CMake makes of the tools that it finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLD_NVCC = """#!/bin/sh
echo "Cuda compilation tools, release 11.8, V11.8.89"
case "$1" in --version) exit 0 ;; *) exit 1 ;; esac
"""


def test_an_nvcc_that_is_too_old_is_named_and_left_alone(tmp_path):
    nvcc, build = tmp_path / "nvcc", tmp_path / "build"
    nvcc.write_text(OLD_NVCC)
    nvcc.chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCAPMOE_OUTPUT_DIR={build}"),
            f"-DPython_EXECUTABLE={sys.executable}",
        ],
        env=os.environ | {"PATH": path, "CUDACXX": str(nvcc)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "CUDA" in line]
    assert "need nvcc 12.0 or newer" in line
    assert line.endswith("is 11.8")
    commands = (build / "compile_commands.json").read_text()
    assert "gate.cpp" in commands
    assert "gate.cu" not in commands
