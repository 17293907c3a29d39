"""The examples run as their first lines say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_expert_parallel():
    example = "examples/expert_parallel.py"
    assert f"torchrun --nproc-per-node 2 {example}" in (ROOT / example).read_text()
    # --standalone: torchrun takes a free port, so that runs side by side do not meet.
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", example]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(.*): rows received \[(.*)\], bound (.*)$", done.stdout, re.M)
    assert [name for name, *_ in found] == ["dropless", "factor 1.0"]
    dropless, bounded = (max(map(int, received.split(", "))) for _, received, _ in found)
    assert bounded <= int(found[1][2]) < dropless
