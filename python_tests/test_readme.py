"""What the README shows must run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import capmoe_kernels as cm

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text()


def test_example_runs_and_bounds_the_load(readme, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)
    capacity = cm.expert_capacity(4096, 64, 8, 1.5)
    assert int(names["routing"].tokens_per_expert.max()) <= capacity
    assert names["out"].shape == names["hidden_states"].shape
    assert "tensor" in capsys.readouterr().out


def test_every_name_in_the_readme_exists(readme):
    for name in set(re.findall(r"\bcm\.(\w+)", readme)):
        assert hasattr(cm, name), f"README names cm.{name}"


def test_every_path_in_the_readme_exists(readme):
    for path in re.findall(r"\b(?:python_tests|bench|capmoe_kernels|docs)/[\w./]+", readme):
        assert (README.parent / path.rstrip(".")).exists(), f"README names {path}"
