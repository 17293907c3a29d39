"""The least time a layer can take, from its shape and two numbers of the GPU."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table

from capmoe_kernels.benchmark.models import PRESETS, Shape

# By the short names that the tables of counts are kept under.
MODELS = {
    "olmoe": PRESETS["olmoe"],
    "mixtral": PRESETS["mixtral"],
    "qwen3": PRESETS["qwen3-30b-a3b"],
    "dsv2lite": PRESETS["deepseek-v2-lite"],
    "dsv3": PRESETS["deepseek-v3"],
}
SHAPES = {name: model.shape for name, model in MODELS.items()}
TOKENS = (1, 64, 1024, 4096, 16384)


class Limits(NamedTuple):
    """What a GPU is seen to reach, not its data sheet: per second."""

    bandwidth: float
    flops: float


GPUS = {"A100": Limits(1.8e12, 260e12), "H100": Limits(3.0e12, 800e12)}


class Work(NamedTuple):
    """What must at least be done: tensor-core operations, and bytes between memory and chip."""

    flops: float
    bytes: float

    def floor_us(self, limits: Limits) -> float:
        return 1e6 * max(self.flops / limits.flops, self.bytes / limits.bandwidth)


def experts_work(shape: Shape, tokens: int, rows: float, busy: float) -> Work:
    """grouped_mlp and combine on ``rows`` rows of ``busy`` experts, bfloat16, two launches.

    Weights once, and every activation once per launch that touches it: x in, h out and in, y out
    and in, the layer's output out.
    """
    weights = busy * 3 * shape.hidden * shape.intermediate
    activations = 2 * tokens * shape.hidden + 2 * rows * (shape.hidden + shape.intermediate)
    flops = 6.0 * rows * shape.hidden * shape.intermediate
    return Work(flops, 2 * (weights + activations))


def busy_experts(shape: Shape, tokens: int) -> float:
    """Expected under uniform routing."""
    return shape.experts * (1 - (1 - shape.top_k / shape.experts) ** tokens)


def roofline() -> Table:
    table = Table(title="floors of the experts, uniform routing without drops, bfloat16")
    columns = ("model", "T", "GFLOP", "busy experts", "MB", *(f"{gpu} us" for gpu in GPUS))
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, shape in SHAPES.items():
        for tokens in TOKENS:
            busy = busy_experts(shape, tokens)
            work = experts_work(shape, tokens, tokens * shape.top_k, busy)
            floors = (f"{work.floor_us(limits):.1f}" for limits in GPUS.values())
            sizes = f"{work.flops / 1e9:.1f}", f"{busy:.1f}", f"{work.bytes / 1e6:.0f}"
            table.add_row(name, str(tokens), *sizes, *floors)
        table.add_section()
    return table
