"""What the CUDA kernels execute, counted in the emulator: ``python -m bench.gpu_counts``.

Warp instructions of PTX per token, pair or tensor-core instruction, and 32-byte sectors over those
of the bytes that must move; beside the least of the same that other packages' kernels were counted
to need, or a bound of our own. Counts, not times. Needs nvcc, and no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import capmoe_kernels as cm

sys.path.insert(0, str(Path(__file__).parent.parent / "python_tests"))
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime.operators import UseEmulatedCuda


class Row(NamedTuple):
    what: str
    shape: str
    per: str  # what instructions are counted per
    instructions: float
    bound: float  # on instructions
    sectors: float | None = None  # touched, over needed


HMMA_FLOPS = 2 * 16 * 8 * 16


def counted(run: object) -> dict[str, int]:
    """The counts of the kernels that a call launches, added."""
    with UseEmulatedCuda(), runtime.recording() as record:
        run()  # type: ignore[operator]
    return record.counts


def sectors(counts: dict[str, int], needed_bytes: int) -> float:
    touched = counts["global_load_sectors"] + counts["global_store_sectors"]
    return touched / (needed_bytes / 32)


def routing_rows() -> Iterator[Row]:
    """gate, and slots, per token and pair; the whole of it for one token."""
    per_token = {(64, 8): 300, (128, 8): 450, (8, 2): 12}
    per_pair = {64: 10, 1024: 4, 4096: 3}
    for (experts, top_k), bound in per_token.items():
        for tokens in (64, 1024):
            logits, gating = torch.randn(tokens, experts), cm.Gating(top_k)
            options = (None, top_k, "softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0)
            counts = counted(lambda x=logits, o=options: torch.ops.capmoe.gate(x, *o))
            shape = f"T={tokens} E={experts} k={top_k}"
            done = counts["warp_instructions"] / tokens
            needed = logits.nbytes + 12 * tokens * top_k
            yield Row("gate", shape, "token", done, bound, sectors(counts, needed))
            for factor in (None, 1.0):
                yield _slots(logits, gating, factor, shape, per_pair[tokens])


def _slots(
    logits: torch.Tensor, gating: cm.Gating, factor: float | None, shape: str, bound: float
) -> Row:
    """mark and select of a caller's own top-k."""
    weights, ids = logits.softmax(1).topk(gating.top_k)
    capacity = cm.Capacity(factor)
    counts = counted(lambda: cm.select(ids, weights, logits.shape[1], capacity))
    what = "select" if factor is None else "select, C binds"
    done = counts["warp_instructions"] / ids.numel()
    return Row(what, shape, "pair", done, bound if factor is None else 8)


def moving_rows() -> Iterator[Row]:
    """dispatch and combine, T=512, H=2048, bfloat16."""
    tokens, top_k, hidden = 512, 8, 2048
    logits, gating = torch.randn(tokens, 64), cm.Gating(top_k)
    x = torch.randn(tokens, hidden).bfloat16()
    routing = cm.route(logits, gating)
    pairs, row = tokens * top_k, 2 * hidden
    shape = f"T={tokens} k={top_k} H={hidden}"
    counts = counted(lambda: cm.dispatch(x, routing))
    done = counts["warp_instructions"] / pairs
    yield Row("dispatch", shape, "pair", done, 100, sectors(counts, pairs * (2 * row + 4)))
    y = torch.randn(pairs, hidden).bfloat16()
    counts = counted(lambda: cm.combine(y, routing))
    done = counts["warp_instructions"] / tokens
    needed = (pairs + tokens) * row + 8 * pairs
    yield Row("combine", shape, "token", done, 1500, sectors(counts, needed))


def expert_rows() -> Iterator[Row]:
    """Both launches of the experts, per tensor-core instruction that the rows need."""
    for tokens, experts, hidden, intermediate in [(256, 2, 512, 256), (8, 8, 512, 256)]:
        up = torch.randn(experts, 2 * intermediate, hidden).bfloat16()
        down = torch.randn(experts, hidden, intermediate).bfloat16()
        weights, x = cm.Experts(up, down), torch.randn(tokens, hidden).bfloat16()
        routing = cm.route(torch.randn(tokens, experts), cm.Gating(1))
        ends = (routing.expert_offsets, routing.tokens_per_expert, routing.row_tokens)
        arguments = (x, up, down, None, None, *ends, weights.activation, weights.layout)
        counts = counted(lambda a=arguments: torch.ops.capmoe.grouped_mlp(*a))
        needed = 6 * tokens * hidden * intermediate / HMMA_FLOPS
        shape = f"T={tokens} E={experts} H={hidden} F={intermediate}"
        done = counts["warp_instructions"] / needed
        moved = 6 * experts * hidden * intermediate + 4 * tokens * (hidden + intermediate)
        yield Row("grouped_mlp", shape, "HMMA", done, 3.2, sectors(counts, moved))


GROUPS = {"routing": routing_rows, "moving": moving_rows, "experts": expert_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=list(GROUPS), help=", ".join(GROUPS))
    torch.manual_seed(0)
    table = Table(title="executed by the kernels compiled for sm_80 (emulated; counts, not times)")
    for column in ("op", "shape", "warp instructions", "per", "bound", "sectors / needed"):
        table.add_column(column, justify="left" if column in ("op", "shape", "per") else "right")
    for group in parser.parse_args().groups:
        for row in GROUPS[group]():
            numbers = f"{row.instructions:.1f}", row.per, f"{row.bound:g}"
            moved = "" if row.sectors is None else f"{row.sectors:.2f}"
            table.add_row(row.what, row.shape, *numbers, moved)
        table.add_section()
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
