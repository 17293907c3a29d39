"""What Triton's kernels execute beside the hand-written ones: counts on sm_80, not times."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from rich.table import Table

import capmoe_kernels as cm
from cases import make_experts, normal, router_logits
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime import operators as cuda
from cuda_on_cpu.runtime import triton_operators as triton

TOKENS, EXPERTS, TOP_K, HIDDEN = 64, 64, 8, 2048
COUNTS = [
    "warp_instructions",
    "global_load_sectors",
    "global_store_sectors",
    "shared_wavefronts",
    "tensor_flops",
    "barriers",
]
# How many times the hand-written kernels' warp instructions, and sectors, Triton's may need.
BOUNDS = {
    "gate": (0.8, 1.05),
    "select": (1.2, 2.0),
    "dispatch": (1.7, 1.05),
    "combine": (1.4, 1.1),
    "grouped_mlp, 8 rows": (0.6, 1.05),
    "grouped_mlp, 40 rows": (0.7, 1.05),
    "grouped_mlp, 128 rows": (1.05, 1.05),
    "moe": (1.0, 1.5),
}


def experts_call(rows):
    """Two experts of H = F = 512 in bfloat16, their rows gathered."""
    experts = make_experts(2, 512, 512, torch.bfloat16)
    weights = (experts.gate_up_proj, experts.down_proj, None, None)
    ends = (torch.arange(3).int() * rows, torch.full((2,), rows).int())
    order = torch.arange(2 * rows).int().flip(0)
    x = normal((2 * rows, 512), torch.bfloat16)
    return lambda: torch.ops.capmoe.grouped_mlp(x, *weights, *ends, order, "silu", "concat")


def calls():
    """OLMoE's 64 experts and top-8 with 64 tokens; the experts themselves are fewer and smaller."""
    logits = router_logits(TOKENS, EXPERTS)
    gating, capacity = cm.Gating(TOP_K), cm.Capacity(1.0)
    routing = cm.route(logits, gating)
    ids, weights = routing.expert_ids, routing.weights
    x = normal((TOKENS, HIDDEN), torch.bfloat16)
    y = normal((TOKENS * TOP_K, HIDDEN), torch.bfloat16)
    small = make_experts(EXPERTS, 64, 32, torch.bfloat16)
    gate = (logits, None, TOP_K, "softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0)
    return {
        "gate": lambda: torch.ops.capmoe.gate(*gate),
        "select": lambda: cm.select(ids, weights, EXPERTS, capacity),
        "dispatch": lambda: cm.dispatch(x, routing),
        "combine": lambda: cm.combine(y, routing),
        **{f"grouped_mlp, {rows} rows": experts_call(rows) for rows in (8, 40, 128)},
        "moe": lambda: cm.moe(x[:, :64], logits, small, gating, capacity),
    }


def count(mode, call):
    with mode, runtime.recording(arch="sm_80") as record:
        call()
    return {"launches": len(record.launches)} | {name: record.counts[name] for name in COUNTS}


def as_text(rows):
    table = Table(title="Triton / CUDA on sm_80 (emulated; counts, not times)")
    for name in ("op", "launches", *COUNTS):
        table.add_column(name.replace("_", " "), justify="left" if name == "op" else "right")
    for op, (ours, theirs) in rows.items():
        table.add_row(op, *(f"{ours[name]:,} / {theirs[name]:,}" for name in ours))
    console = Console(width=160, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_beside_the_hand_written_kernels(record_property):
    for reason in (triton.why_absent(), cuda.why_absent()):
        if reason is not None:
            pytest.skip(reason)
    rows = {
        op: (count(triton.UseEmulatedTriton(), call), count(cuda.UseEmulatedCuda(), call))
        for op, call in calls().items()
    }
    record_property("counts_table", as_text(rows))
    assert rows.keys() == BOUNDS.keys()
    for op, (ours, theirs) in rows.items():
        instructions, sectors = BOUNDS[op]
        assert ours["warp_instructions"] <= instructions * theirs["warp_instructions"], op
        moved = [row["global_load_sectors"] + row["global_store_sectors"] for row in (ours, theirs)]
        assert moved[0] <= sectors * moved[1], op
