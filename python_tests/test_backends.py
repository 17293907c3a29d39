"""backends() tells the truth, and CAPMOE_BACKENDS narrows it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.ops import OPS

SHOW = "import capmoe_kernels as cm; b = cm.backends(); print(b.serving['cpu']); print(b.absent)"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def has_kernel(op, key):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"capmoe::{op}", key)


def test_serving_is_what_the_dispatcher_does():
    served = cm.backends().serving["cpu"]
    assert served in ("cpu", "reference")
    for op in OPS:
        assert has_kernel(op, "CPU") == (served == "cpu"), op
        assert has_kernel(op, "CompositeExplicitAutograd"), op


def test_absent_says_why():
    state = cm.backends()
    names = set(state.serving.values()) | set(state.absent)
    assert {"cpu", "cuda", "triton"} <= names
    assert not set(state.serving.values()) & set(state.absent)
    assert all(reason for reason in state.absent.values())
    if torch.version.cuda is None and torch.version.hip is None:
        assert "cuda" not in state.serving
    built = find_spec("capmoe_kernels._cpu") is not None
    if "CAPMOE_BACKENDS" not in os.environ:
        assert (state.serving["cpu"] == "cpu") == built


def test_str_has_a_line_for_each():
    state = cm.backends()
    lines = str(state).splitlines()
    assert len(lines) == len(state.serving) + len(state.absent)
    for name in [*state.serving, *state.absent]:
        assert any(name in line for line in lines)


def test_the_answer_is_a_copy():
    cm.backends().serving["cpu"] = "lies"
    cm.backends().absent.clear()
    assert cm.backends().serving["cpu"] != "lies"
    assert cm.backends().absent


@pytest.mark.parametrize("names", ["reference", "cuda", "triton", " reference , cuda"])
def test_environment_narrows(names):
    result = python(SHOW, CAPMOE_BACKENDS=names)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "reference"
    assert "CAPMOE_BACKENDS" in result.stdout.splitlines()[1]


def test_environment_keeps_cpu():
    if find_spec("capmoe_kernels._cpu") is None:
        pytest.skip("capmoe_kernels._cpu was not built")
    result = python(SHOW, CAPMOE_BACKENDS="cpu")
    assert result.stdout.splitlines()[0] == "cpu"


@pytest.mark.parametrize("names", ["gpu", "cpu,cdua", "CPU"])
def test_environment_refuses_unknown_names(names):
    result = python(SHOW, CAPMOE_BACKENDS=names)
    assert result.returncode != 0
    wrong = names.split(",")[-1]
    assert "ValueError: CAPMOE_BACKENDS" in result.stderr
    assert wrong in result.stderr


def test_reference_alone_serves_the_layer():
    code = """
import torch, capmoe_kernels as cm
experts = cm.Experts(torch.randn(4, 6, 8), torch.randn(4, 8, 3))
out = cm.moe(torch.randn(5, 8), torch.randn(5, 4), experts, cm.Gating(2), cm.Capacity(1.0))
print(tuple(out.shape), cm.backends().serving["cpu"])
"""
    result = python(code, CAPMOE_BACKENDS="reference")
    assert result.stdout.strip() == "(5, 8) reference", result.stderr


def test_public_names():
    for name in cm.__all__:
        assert getattr(cm, name).__doc__, name
