"""Launches of the kernels in kernels/*.cu, each with what torch says they should have written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from cuda_on_cpu import Const, compile_cuda, emulate

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

FOLDER = Path(__file__).parent / "kernels"
MAX_STEPS = 2_000_000


def compiled(name: str, old: str = "", new: str = "", which: int = 0) -> str:
    """PTX of kernels/`name`.cu, with the `which`-th occurrence of `old` replaced by `new`."""
    source = (FOLDER / f"{name}.cu").read_text()
    if old:
        parts = source.split(old)
        assert len(parts) > which + 1, f"{name}.cu has no {old!r} number {which}"
        source = old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :])
    return compile_cuda(source, arch="sm_80")


@dataclass
class Outcome:
    """A launch that raised nothing: the tensors written, those expected, and the report."""

    got: list[torch.Tensor]
    expected: list[torch.Tensor]
    report: object
    tolerance: float = 0.0

    def right(self) -> bool:
        close = {"rtol": self.tolerance, "atol": self.tolerance}
        pairs = zip(self.got, self.expected, strict=True)
        return all(torch.allclose(got, expected, **close) for got, expected in pairs)


@dataclass
class Launch:
    """What a planted bug may change of a launch; None is what the kernel asks for."""

    seed: int = 0
    grid: int | tuple | None = None
    block: int | None = None
    shared: int | None = None
    const_output: bool = False
    short_output: int = 0
    on_gpu: bool | float = 1e-5

    def __call__(self, ptx, name, grid, block, shared, *args):
        kernel = emulate(ptx, name)
        grid = grid if self.grid is None else self.grid
        block = block if self.block is None else self.block
        shared = shared if self.shared is None else self.shared
        options = {"seed": self.seed, "max_steps": MAX_STEPS, "on_gpu": self.on_gpu}
        return kernel[grid, block, shared](*args, **options)

    def output(self, tensor):
        """The tensor as passed to the kernel."""
        if self.short_output:
            tensor = tensor.view(-1)[: -self.short_output].clone()
        return Const(tensor) if self.const_output else tensor


def generator(*shape) -> torch.Generator:
    return torch.Generator().manual_seed(sum(shape))


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(*shape)).to(dtype)


def integers(high, *shape, dtype=torch.int32):
    return torch.randint(high, shape, generator=generator(*shape), dtype=dtype)


def unwritten(*shape, dtype=torch.float32):
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.full(shape, value, dtype=dtype)


def softmax_rows(ptx, launch, rows=3, columns=260):
    x, y = normal(rows, columns), unwritten(rows, columns)
    args = (Const(x), launch.output(y), columns)
    report = launch(ptx, "softmax_rows", rows, 128, 4 * columns, *args)
    return Outcome([y], [x.softmax(1)], report, 1e-5)


def topk_gate(ptx, launch, tokens=10, experts=60, top_k=6):
    logits = normal(tokens, experts)
    logits[0] = 0.5
    weights, ids = unwritten(tokens, top_k), unwritten(tokens, top_k, dtype=torch.int32)
    args = (Const(logits), weights, ids, tokens, experts, top_k)
    report = launch(ptx, "topk_gate", -(-tokens // 4), 128, 0, *args)
    best = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    kept = best.values[:, :top_k]
    expected = [kept / kept.sum(1, keepdim=True), best.indices[:, :top_k].int()]
    return Outcome([weights, ids], expected, report, 1e-5)


def slots(ptx, launch, tokens=700, experts=60, name="slots_by_shuffle"):
    experts_of = integers(experts, tokens)
    offsets, rows = unwritten(experts + 1, dtype=torch.int32), unwritten(tokens, dtype=torch.int32)
    args = (Const(experts_of), tokens, experts, offsets, launch.output(rows))
    report = launch(ptx, name, 1, 256, 0, *args)
    ends = experts_of.bincount(minlength=experts).cumsum(0).int()
    expected = experts_of.sort(stable=True).indices.argsort().int()
    return Outcome([offsets, rows], [torch.nn.functional.pad(ends, (1, 0)), expected], report)


def chained_scan(ptx, launch, count=1000):
    tiles = -(-count // 256)
    values, sums = integers(100, count), unwritten(count, dtype=torch.int32)
    next_tile, ready = torch.zeros(1, dtype=torch.int32), torch.zeros(tiles, dtype=torch.int32)
    ends = unwritten(tiles, dtype=torch.int32)
    args = (Const(values), sums, count, next_tile, ends, ready)
    report = launch(ptx, "chained_scan", tiles, 256, 0, *args)
    expected = values.cumsum(0, dtype=torch.int32)
    return Outcome([sums, ends[-1:]], [expected, expected[-1:]], report)


def grouped_gemm(ptx, launch, counts=(70, 0, 64, 3), columns=128, depth=160):
    offsets = torch.tensor([0, *counts]).cumsum(0, dtype=torch.int32)
    rows = int(offsets[-1])
    a = normal(rows, depth, dtype=torch.bfloat16)
    b = normal(len(counts), depth, columns, dtype=torch.bfloat16)
    c = unwritten(rows, columns, dtype=torch.bfloat16)
    grid = (columns // 64, -(-max(counts) // 64), len(counts))
    args = (Const(a), Const(b), launch.output(c), Const(offsets), columns, depth)
    report = launch(ptx, "grouped_gemm", grid, 128, 3 * 8192, *args)
    groups = a.double().split(list(counts))
    expected = torch.cat([group @ b[e].double() for e, group in enumerate(groups)])
    return Outcome([c.double()], [expected], report, 2e-2)


def sort_scores(ptx, launch, count=500):
    scores = normal(count).round(decimals=1)
    sorted_scores, order = unwritten(count), unwritten(count, dtype=torch.int32)
    args = (Const(scores), launch.output(sorted_scores), order, count)
    report = launch(ptx, "sort_scores", 1, 128, 0, *args)
    best = scores.sort(dim=0, descending=True, stable=True)
    return Outcome([sorted_scores, order], [best.values, best.indices.int()], report)


def scan_rows(ptx, launch, rows=2, columns=1300):
    values, sums = integers(1000, rows, columns), unwritten(rows, columns, dtype=torch.int32)
    args = (Const(values), launch.output(sums), columns)
    report = launch(ptx, "scan_rows", rows, 128, 0, *args)
    return Outcome([sums], [values.cumsum(1, dtype=torch.int32)], report)


def sum_rows(ptx, launch, rows=10, columns=77):
    values, sums = integers(1000, rows, columns), unwritten(rows, dtype=torch.int32)
    total = torch.zeros(1, dtype=torch.int32)
    args = (Const(values), sums, total, rows, columns)
    report = launch(ptx, "sum_rows", -(-rows // 4), 128, 0, *args)
    expected = [values.sum(1, dtype=torch.int32), values.sum(dtype=torch.int32).view(1)]
    return Outcome([sums, total], expected, report)


def largest_of_16(ptx, launch, rows=13):
    values, largest = normal(rows, 16), unwritten(rows)
    report = launch(ptx, "largest_of_16", -(-rows // 8), 128, 0, Const(values), largest, rows)
    return Outcome([largest], [values.amax(1)], report)


def count_bins(ptx, launch, count=3000, blocks=4):
    bins, counts = integers(64, count), torch.zeros(64, dtype=torch.int32)
    args = (Const(bins), count, launch.output(counts))
    report = launch(ptx, "count_bins", blocks, 128, 0, *args)
    return Outcome([counts], [bins.bincount(minlength=64).int()], report)


def count_bytes(ptx, launch):
    values, counts = integers(64, 512, dtype=torch.uint8), unwritten(64, dtype=torch.int32)
    report = launch(ptx, "count_bytes", 1, 128, 0, Const(values), counts)
    return Outcome([counts], [values.bincount(minlength=64).int()], report)


SOURCES = {
    "softmax_topk": (softmax_rows, topk_gate),
    "slots": (slots, chained_scan),
    "gemm": (grouped_gemm,),
    "cub_sorts": (sort_scores, scan_rows, sum_rows, largest_of_16, count_bins, count_bytes),
}


def source_of(run) -> str:
    """The file of the kernel that a function above, or a partial of it, launches."""
    function = getattr(run, "func", run)
    return next(source for source, runs in SOURCES.items() if function in runs)


def describe(value) -> str | None:
    """A test's name for such a function."""
    if isinstance(value, partial):
        return "-".join([value.func.__name__, *map(str, value.keywords.values())])
    return getattr(value, "__name__", None)
