"""Every op by Triton's interpreter against the reference; see triton_interpreted.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def interpreted():
    """The ops that were right, and complaints."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, str(HERE / "triton_interpreted.py")]
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("op", ["gate", "select", "dispatch", "combine", "grouped_mlp"])
def test_the_interpreter_agrees(interpreted, op):
    assert op in interpreted.stdout.split(), interpreted.stderr
