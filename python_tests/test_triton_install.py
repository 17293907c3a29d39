"""Who serves a GPU where nothing was compiled; Triton is not imported where it serves nobody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import capmoe_kernels as cm
from cuda_on_cpu.runtime.triton_operators import why_absent

TESTS = Path(__file__).parent
PACKAGE = Path(cm.__file__).parent
triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SHOW = """
import json, sys, torch
import capmoe_kernels as cm
from capmoe_kernels.ops import OPS
state = cm.backends()
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
kernels = [op for op in OPS if has_kernel(f"capmoe::{op}", "CUDA")]
imported = [name for name in ("triton", "capmoe_kernels._cpu", "capmoe_kernels._cuda")
            if sys.modules.get(name) is not None]
print(json.dumps([state.serving, state.absent, kernels, imported, cm.__file__]))
"""
WITH_GPU = "import torch; torch.version.cuda = '13.0'\n"  # what a torch for GPUs says of itself
WITHOUT_TRITON = "import sys; sys.modules['triton'] = None\n"
LAYER = """
import torch, capmoe_kernels as cm
from cases import make_experts, normal, router_logits
inputs = (normal((40, 32)), router_logits(40, 8), make_experts(8, 32, 16))
layer = lambda: cm.moe(*inputs, cm.Gating(2), cm.Capacity(1.0))
"""


@pytest.fixture
def bare(tmp_path):
    """A folder with the package as it is where nothing could be compiled."""
    shutil.copytree(
        PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    return tmp_path


def python(code, package=PACKAGE.parent, **environment):
    """What a fresh interpreter prints."""
    path = os.pathsep.join(map(str, (package, TESTS)))
    environment = os.environ | {"PYTHONPATH": path, "CAPMOE_BACKENDS": EVERY} | environment
    command = [sys.executable, "-c", ALONE + code]
    done = subprocess.run(
        command, env=environment, cwd=package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def show(code="", package=PACKAGE.parent, **environment):
    serving, absent, kernels, imported, file = json.loads(
        python(code + SHOW, package, **environment).splitlines()[-1]
    )
    assert Path(file).parents[1] == package
    return serving, absent, kernels, imported


# An editable install would find in the working tree what the copy of the package does not have.
ALONE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""
EVERY = "cpu,cuda,triton"  # what is considered by default
NO_COMPILER = {"PATH": "/nowhere"}


@triton
def test_without_compiled_modules(bare):
    """A torch for GPUs: Triton serves them, the reference the CPU."""
    serving, absent, kernels, imported = show(WITH_GPU, bare, **NO_COMPILER)
    assert serving == {"cpu": "reference", "cuda": "triton"}
    assert absent.keys() == {"cpu", "cuda"}
    assert all("was not built" in reason for reason in absent.values())
    assert kernels == cm.ops.OPS
    assert imported == ["triton"]


def test_without_triton_either(bare):
    serving, absent, kernels, imported = show(WITHOUT_TRITON + WITH_GPU, bare, **NO_COMPILER)
    assert serving == {"cpu": "reference", "cuda": "reference"}
    assert absent["triton"] == "triton is not installed"
    assert kernels == imported == []


def test_without_gpu_support(bare):
    if torch.version.cuda is not None or torch.version.hip is not None:
        pytest.skip("this torch has GPU support")
    serving, absent, kernels, imported = show("", bare, **NO_COMPILER)
    assert serving == {"cpu": "reference"}
    assert absent["cuda"] == absent["triton"] == "this torch has no GPU support"
    assert kernels == imported == []


def cuda_is_built():
    return find_spec("capmoe_kernels._cuda") is not None


@pytest.mark.parametrize("names", ["cuda", "cuda,triton", "cpu,cuda,triton"])
def test_cuda_serves_where_it_is_built(names):
    if not cuda_is_built():
        pytest.skip("capmoe_kernels._cuda was not built")
    serving, absent, _, imported = show(WITH_GPU, CAPMOE_BACKENDS=names)
    assert serving["cuda"] == "cuda"
    expected = "cuda serves" if "triton" in names else "CAPMOE_BACKENDS leaves it out"
    assert absent["triton"] == expected
    assert "triton" not in imported


@triton
@pytest.mark.parametrize("names", ["triton", "cpu,triton", " triton , reference"])
def test_triton_is_chosen_by_name(names):
    serving, absent, kernels, imported = show(WITH_GPU, CAPMOE_BACKENDS=names)
    assert serving["cuda"] == "triton"
    assert absent["cuda"] == "CAPMOE_BACKENDS leaves it out"
    assert kernels == cm.ops.OPS
    assert "triton" in imported
    assert "capmoe_kernels._cuda" not in imported


def test_triton_is_left_out():
    serving, absent, kernels, imported = show(WITH_GPU, CAPMOE_BACKENDS="reference")
    assert serving == {"cpu": "reference", "cuda": "reference"}
    assert absent["triton"] == "CAPMOE_BACKENDS leaves it out"
    assert kernels == imported == []


def test_the_reference_serves_the_layer(bare):
    """No compiled module, no compiler, no GPU."""
    code = LAYER + "print(tuple(layer().shape), cm.backends().serving['cpu'])"
    for package, names in [(bare, "triton,reference"), (PACKAGE.parent, "triton,reference")]:
        out = python(code, package, CAPMOE_BACKENDS=names, **NO_COMPILER)
        assert out.strip() == "(40, 32) reference"


def test_triton_serves_the_layer(bare):
    """The same package: its Triton kernels, emulated, give what its reference gives."""
    if why_absent() is not None:
        pytest.skip(f"triton-emulated: {why_absent()}")
    code = f"""{LAYER}
from cuda_on_cpu.runtime import recording
from cuda_on_cpu.runtime.triton_operators import UseEmulatedTriton
expected = layer()
with UseEmulatedTriton(), recording() as record:
    out = layer()
torch.testing.assert_close(out, expected)
print(len(record.launches), cm.backends().serving["cpu"])
"""
    assert python(code, bare, CAPMOE_BACKENDS="triton,reference").strip() == "5 reference"


def test_an_op_runs_on_its_tensors_device(monkeypatch):
    """Triton launches on the current device, which need not be the tensors'."""
    entered = []

    @contextmanager
    def device(of):
        entered.append(of)
        yield
        entered.append(None)

    def op(first, second):
        assert entered == [first.device]
        return first + second

    monkeypatch.setattr(torch.cuda, "device", device)
    first = torch.ones(2)
    backends = import_module("capmoe_kernels.backends")  # the name in the package is a function
    assert backends._on_its_device(op)(first, 2).tolist() == [3, 3]
    assert entered == [first.device, None]
