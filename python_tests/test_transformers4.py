"""The same tests on the last Transformers 4, in a process of its own.

``make build/transformers4/.installed`` puts it there; it shares everything else with the
environment that the tests run in. ``CAPMOE_REQUIRE=transformers4`` turns the skip of its absence
into a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "transformers4"
FILES = (
    "transformers4_checks.py",
    "test_architectures.py",
    "test_architectures_refusals.py",
    "test_transformers_padding.py",
    "test_transformers_scopes.py",
)


def test_every_architecture_on_transformers_4():
    if not (FOLDER / "transformers").is_dir():
        reason = f"no Transformers 4 in {FOLDER}: make build/transformers4/.installed"
        if "transformers4" in os.environ.get("CAPMOE_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]  # they are of the process that runs this test
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        command + [str(HERE / name) for name in FILES],
        env=environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
