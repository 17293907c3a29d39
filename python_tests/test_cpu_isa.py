"""Every instruction set that the machine has computes gate and experts right, not only the best."""

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

# Rows of one vector and of many, of every remainder; ties, and what is no number; every way to
# choose. Where a bias decides, it is by whole numbers: the last bit of a score is a backend's own.
GATE_SCRIPT = """
import math
import torch
from cases import router_logits
import capmoe_kernels as cm
from capmoe_kernels import reference

def check(logits, bias, top_k, *options):
    arguments = (logits, bias, top_k, *options)
    for got, want in zip(torch.ops.capmoe.gate(*arguments), reference.gate(*arguments)):
        what = f"{tuple(logits.shape)} {logits.dtype} {top_k} {options}"
        assert got.dtype == want.dtype, what
        if got.dtype == torch.int32:
            assert torch.equal(got, want), what
        else:
            torch.testing.assert_close(got, want, rtol=3e-6, atol=1e-30, msg=lambda m: what + m)

def variants(logits, top_k):
    experts = logits.shape[1]
    one_group = (1, 1, "max")
    rest = experts - top_k
    check(logits, None, top_k, "softmax", "none", 1.0, *one_group, "prob", "none", 0, 0, 0)
    check(logits, None, top_k, "sigmoid", "topk", 2.5, *one_group, "weight", "none", 0, 0, 0)
    check(logits, None, top_k, "softmax", "kept", 1.0, *one_group, "weight", "rank", rest, 0, 0)
    local = (experts // 3, experts - experts // 4)
    check(logits, None, top_k, "softmax", "topk", 1.0, *one_group, "prob", "local", 0, *local)
    bias = torch.arange(experts).mul(7).remainder(experts).float() * 2
    check(logits, bias, top_k, "sigmoid", "topk", 1.0, *one_group, "prob", "none", 0, 0, 0)
    if experts % 4 == 0 and top_k <= experts // 2:
        rest = ("prob", "none", 0, 0, 0)
        check(logits, None, top_k, "softmax", "none", 1.0, 4, 2, "max", *rest)
        check(logits, bias, top_k, "softmax", "none", 1.0, 4, 2, "top2_sum", *rest)

for experts in (1, 2, 7, 8, 9, 12, 15, 17, 33, 40, 60, 64, 65, 100, 128, 130, 160, 256, 300, 512):
    for top_k in sorted({min(k, experts) for k in (1, 2, 8, 35)} | {experts // 2 + 1}):
        for tokens in (1, 7) if experts > 100 else (1, 2, 3, 5, 35):
            for style in ("gaussian", "levels"):
                logits = router_logits(tokens, experts, style, seed=experts + top_k)
                variants(logits, top_k)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = router_logits(21, experts, seed=experts).to(dtype)
        logits[router_logits(21, experts, "levels", seed=1) < 0] = -math.inf
        logits[3] = math.nan
        logits[4, ::2] = math.nan
        logits[5, experts // 2] = logits[5, 0] = math.inf
        logits[6] = -math.inf
        variants(logits, min(4, experts))
        spread = (router_logits(9, experts, seed=2) * 60).to(dtype)  # most of exp underflows
        variants(spread, min(4, experts))
        wide = torch.zeros(9, 2 * experts + 1, dtype=dtype)
        wide[:, 1::2] = logits[:9]
        variants(wide[:, 1::2], min(4, experts))
        variants(logits[:0], min(4, experts))
print("right")
"""


def run(isa: str, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CAPMOE_CPU_ISA": isa, "CAPMOE_BACKENDS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent,
    )


@pytest.fixture(autouse=True)
def cpu_backend():
    if cm.backends().serving["cpu"] != "cpu":
        pytest.skip(f"cpu: {cm.backends().absent['cpu']}")


@pytest.mark.parametrize(
    ("isa", "script"),
    [(isa, SCRIPT) for isa in ("scalar", "avx2", "avx512", "avx512_bf16", "amx")]
    + [(isa, GATE_SCRIPT) for isa in ("scalar", "avx2", "avx512")],
    ids=lambda value: value if len(value) < 20 else "gate" if "capmoe.gate" in value else "experts",
)
def test_each_instruction_set(isa, script):
    done = run(isa, script)
    if "this processor's best is" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "right\n"


def test_unknown_instruction_set_is_an_error_that_lists_them():
    done = run("sse9")
    assert done.returncode != 0
    assert "CAPMOE_CPU_ISA is 'sse9', not scalar, avx2, avx512, avx512_bf16 or amx" in done.stderr
