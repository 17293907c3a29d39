"""A tiny random OLMoE served by vLLM itself, with and without the plugin; needs vLLM installed.

``make test-vllm`` has an environment with it. ``CAPMOE_REQUIRE=vllm`` turns the skip of its absence
into a failure.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import capmoe_kernels as cm

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _vllm():
    if find_spec("vllm") is None:
        if "vllm" in os.environ.get("CAPMOE_REQUIRE", "").split(","):
            pytest.fail("CAPMOE_REQUIRE asks for vllm, which is not installed: make test-vllm")
        pytest.skip("vLLM is not installed: make test-vllm")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tiny_model import save_tiny

    return save_tiny(
        tmp_path_factory.mktemp("olmoe"),
        hidden_size=64,
        intermediate_size=64,
        max_position_embeddings=256,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which vLLM finds this checkout's entry point, installed or not."""
    text = (ROOT / "pyproject.toml").read_text()
    entry = re.search(r'\[project\.entry-points\."(.+?)"\]\n(capmoe = ".+?")', text)
    site = tmp_path_factory.mktemp("site")
    info = site / "capmoe_kernels-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: capmoe-kernels\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2].replace(chr(34), '')}\n")
    return site


@pytest.fixture(scope="module")
def serve(checkpoint, installed, tmp_path_factory):
    def run(**variables):
        out = tmp_path_factory.mktemp("out") / "out.json"
        environment = {n: v for n, v in os.environ.items() if not n.startswith("CAPMOE_VLLM_")}
        environment |= variables | {"VLLM_CACHE_ROOT": str(out.parent)}
        environment["PYTHONPATH"] = f"{installed}{os.pathsep}{ROOT}"
        command = [sys.executable, ROOT / "python_tests" / "vllm_serve.py", checkpoint, out]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(out.read_text())

    return run


def difference(a, b):
    """The largest of two runs' log-probabilities."""
    pairs = zip(a["logprobs"], b["logprobs"], strict=True)
    return max((torch.tensor(x) - torch.tensor(y)).abs().max().item() for x, y in pairs)


def test_dropless_is_vllms_own_and_a_capacity_holds(serve):
    own = serve()
    assert own["calls"] == [], "without the variable the plugin does nothing"

    dropless = serve(CAPMOE_VLLM_CAPACITY_FACTOR="inf")
    prompts = dropless["calls"][0][0]
    assert prompts == 90, "both prompts in one step"
    assert difference(own, dropless) < 2e-5
    assert own["tokens"] == dropless["tokens"]
    assert all(asked == kept for *_, asked, kept in dropless["calls"])

    bounded = serve(CAPMOE_VLLM_CAPACITY_FACTOR="1.0")
    for tokens, num_experts, top_k, _, kept in bounded["calls"]:
        assert kept <= cm.expert_capacity(tokens, num_experts, top_k, 1.0)
    asked, kept = bounded["calls"][0][3:]
    assert asked > kept == cm.expert_capacity(90, 8, 2, 1.0)
    assert difference(own, bounded) > 0.1
