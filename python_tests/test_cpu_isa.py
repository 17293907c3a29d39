"""Every instruction set that the machine has computes the experts right, not only the best one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import capmoe_kernels as cm

# In a process of its own, since the choice is made once. Shapes: vectors and tiles that do not come
# out even, few rows, more rows and columns than one block of any kernel, few rows of more than one
# block of columns in either product, and a last tile of few rows behind full ones.
SCRIPT = """
import torch
from cases import make_experts, normal, router_logits
from checks import assert_close_to_truth
import capmoe_kernels as cm
from capmoe_kernels import reference

SHAPES = [(33, 100, 37), (3, 64, 48), (200, 1100, 70)]
SHAPES += [(5, 2100, 30), (7, 24, 2500), (138, 300, 270)]
for tokens, hidden, width in SHAPES:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        experts = make_experts(4, hidden, width, dtype, 5)
        x = normal((tokens, hidden), dtype, 6)
        routing = cm.route(router_logits(tokens, 4), cm.Gating(top_k=2))
        places = (routing.expert_offsets, routing.tokens_per_expert, routing.row_tokens)
        weights = (experts.gate_up_proj, experts.down_proj)
        rest = (None, None, *places, "silu", "concat")
        truth = reference.grouped_mlp(x.double(), *(w.double() for w in weights), *rest)
        same = reference.grouped_mlp(x, *weights, *rest)
        out = torch.ops.capmoe.grouped_mlp(x, *weights, *rest)
        assert_close_to_truth(out, truth, same, f"{dtype} {tokens}x{hidden}x{width}")
        packed = experts.pack()
        weights = (packed.gate_up_proj, packed.down_proj, None, None, *places, "silu", "packed")
        assert torch.ops.capmoe.grouped_mlp(x, *weights).equal(out)
print("right")
"""


def run(isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CAPMOE_CPU_ISA": isa, "CAPMOE_BACKENDS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent,
    )


@pytest.fixture(autouse=True)
def cpu_backend():
    if cm.backends().serving["cpu"] != "cpu":
        pytest.skip(f"cpu: {cm.backends().absent['cpu']}")


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512_bf16", "amx"])
def test_each_instruction_set(isa):
    done = run(isa)
    if "this processor's best is" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "right\n"


def test_unknown_instruction_set_is_an_error_that_lists_them():
    done = run("sse9")
    assert done.returncode != 0
    assert "CAPMOE_CPU_ISA is 'sse9', not scalar, avx2, avx512, avx512_bf16 or amx" in done.stderr
