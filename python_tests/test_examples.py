"""The examples run as their first lines say, and print what they promise."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import capmoe_kernels as cm

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(name: str, *launcher: str) -> str:
    """What the example prints."""
    done = subprocess.run(
        [sys.executable, *launcher, f"examples/{name}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def test_all_are_listed_and_say_how_they_are_run():
    page, readme = (ROOT / "docs/examples.md").read_text(), (ROOT / "README.md").read_text()
    here = Path(__file__).read_text()
    for name in EXAMPLES:
        about = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text()))
        (command,) = re.findall(r"^    (.*)$", about or "", re.M)
        assert re.fullmatch(rf"(python|torchrun --nproc-per-node 2) examples/{name}.*", command)
        assert command.split(" [")[0] in page, f"docs/examples.md has another command for {name}"
        assert f"examples/{name}" in readme, f"README does not name {name}"
        assert f'run("{name}"' in here, f"{name} is not run here"


def test_layer():
    out = run("layer.py")
    (quoted,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs/examples.md").read_text(), re.S)
    assert quoted in out, "docs/examples.md says something else"
    found = re.findall(r"keeps more than (\d+).*\n  asked for (.*)\n  kept (.*)", out)
    assert [int(most) for most, *_ in found] == [128, 64, 32]
    for most, asked, kept in found:
        assert numbers(kept) == [min(load, int(most)) for load in numbers(asked)]
        assert max(numbers(asked)) > int(most)


def test_transformers_model():
    pytest.importorskip("transformers")
    out = run("transformers_model.py")
    (tokens,) = re.findall(r"prompt of (\d+) tokens", out)
    asked, kept = (numbers(line) for line in re.findall(r"(?:asked for|kept) (.*)", out))
    capacity = cm.expert_capacity(int(tokens), 64, 4, 1.0)
    assert kept == [min(load, capacity) for load in asked]
    assert asked[0] > 5 * capacity
    texts = dict(re.findall(r"^  (Transformers|dropless|factor 1\.0) +(['\"].+)$", out, re.M))
    assert texts["dropless"] == texts["Transformers"] != texts["factor 1.0"]
    assert "after undo as before: True" in out


def test_own_router():
    out = run("own_router.py")
    dropless, bounded = (numbers(line) for line in re.findall(r"tokens by expert (.*)", out))
    assert bounded == [min(load, cm.expert_capacity(200, 8, 2, 1.0)) for load in dropless]
    assert bounded != dropless
    (_, before), (rare, after) = re.findall(r"([\d.]+) of rare words, ([\d.]+) of common", out)
    assert rare == "2.00", "the rare keep their places"
    assert float(after) < float(before)


def test_jax_arrays():
    pytest.importorskip("jax")
    out = run("jax_arrays.py")
    dropless, bounded = (numbers(line) for line in re.findall(r"tokens by expert (.*)", out))
    assert bounded == [min(load, cm.expert_capacity(96, 8, 2, 1.0)) for load in dropless]
    assert bounded != dropless
    assert "the same loads from jax.lax.top_k: True" in out


def test_expert_parallel():
    # --standalone: torchrun takes a free port, so that runs side by side do not meet.
    out = run("expert_parallel.py", *TORCHRUN)
    found = re.findall(r"^(.*): rows received \[(.*)\], bound (.*)$", out, re.M)
    assert [name for name, *_ in found] == ["dropless", "factor 1.0"]
    dropless, bounded = (max(map(int, received.split(", "))) for _, received, _ in found)
    assert bounded <= int(found[1][2]) < dropless
