"""The grouped MLP's CUDA kernels, executed without a GPU: values, memory, races and counts."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from capmoe_kernels.reference import grouped_mlp
from cases import normal
from checks import assert_close_to_truth, same_bits
from cuda_on_cpu import Const, compile_cuda, emulate

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
NAMES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}
GATINGS = ["none", "concat", "interleaved"]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "swigluoai", "relu", "relu2"]

SOURCE = """
#include "{header}"  // {digest}
namespace cuda = capmoe::cuda;
using T = {dtype};
using Tile = cuda::{tile};
template __global__ void capmoe::cuda::{kernel}(
    const T*, const int32_t*, const T*, const T*, const int32_t*, const int32_t*, T*, int, int, int,
    cuda::Gating, int, bool);
extern "C" __global__ void sizes(int experts, int* out) {{
  out[0] = Tile::kThreads;
  out[1] = Tile::kFixedBytes + cuda::Pieces::bytes(experts, Tile::kWarps);
  out[2] = Tile::kRows;
  out[3] = Tile::kWeights;
  out[4] = Tile::kDepth;
}}
"""


@functools.cache
def compiled(dtype, tile):
    """(the kernel, the one that tells the tile's sizes)"""
    headers = sorted([*SOURCES.glob("*.cuh"), SOURCES.parent / "options.h"])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in headers)).hexdigest()
    if tile == "Warpgroup":
        names = ("grouped_gemm_sm90.cuh", "WarpgroupTile<T>", "grouped_gemm_sm90_kernel<T, Tile>")
    else:
        aligned = "false" if tile == "Unaligned" else "true"
        names = (
            "grouped_gemm.cuh",
            f"Tiles<T>::{tile}",
            f"grouped_gemm_kernel<T, Tile, {aligned}>",
        )
    header, tile_type, kernel = names
    source = SOURCE.format(
        header=header, digest=digest, dtype=NAMES[dtype], tile=tile_type, kernel=kernel
    )
    arch = "sm_90a" if tile == "Warpgroup" else "sm_80"
    ptx = compile_cuda(source, arch=arch, flags=(f"-I{SOURCES}",))
    ptx = re.sub(r"griddepcontrol\.\w+;", "", ptx)  # launches do not overlap here
    name = re.search(r"\.entry (\w*grouped_gemm\w*)", ptx)[1]
    return emulate(ptx, name), emulate(ptx, "sizes")


@dataclass
class Shape:
    """What a tile is made of, and what a block of it needs."""

    threads: int
    shared: int
    rows: int
    weights: int
    depth: int


def shape_of(dtype, tile, experts):
    out = torch.zeros(5, dtype=torch.int32)
    compiled(dtype, tile)[1][1, 1](experts, out)
    return Shape(*out.tolist())


@dataclass
class Groups:
    """Experts' places in the packed buffer: whole numbers of `alignment` rows."""

    offsets: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, counts, alignment=1):
        padded = torch.tensor([-(-n // alignment) * alignment for n in counts])
        offsets = torch.nn.functional.pad(padded.cumsum(0), (1, 0)).int()
        return cls(offsets, torch.tensor(counts, dtype=torch.int32))

    def rows(self):
        return int(self.offsets[-1])

    def live(self):
        mask = torch.zeros(self.rows(), dtype=torch.bool)
        for start, count in zip(self.offsets.tolist(), self.counts.tolist(), strict=False):
            mask[start : start + count] = True
        return mask


def run_gemm(
    tile, x, weights, bias, groups, row_tokens=None, gating="none", activation=-1, grid=3, seed=0
):
    """One launch. -> (out, NaN where nothing was written; the report)"""
    dtype, experts = x.dtype, len(groups.counts)
    columns = weights.shape[1] // (1 if gating == "none" else 2)
    out = torch.full((groups.rows(), columns), float("nan"), dtype=dtype)
    shape = shape_of(dtype, tile, experts)
    report = compiled(dtype, tile)[0][grid, shape.threads, shape.shared](
        Const(x),
        None if row_tokens is None else Const(row_tokens),
        Const(weights),
        None if bias is None else Const(bias),
        Const(groups.offsets),
        Const(groups.counts),
        out,
        experts,
        weights.shape[2],
        columns,
        GATINGS.index(gating),
        activation,
        int(gating == "none"),  # early: asks for weights in advance
        seed=seed,
        on_gpu={6: max(4 * torch.finfo(dtype).eps, 1e-5)},
    )
    assert report.warnings == []
    return out, report


@dataclass
class Layer:
    """Experts and their rows."""

    x: torch.Tensor
    row_tokens: torch.Tensor | None
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None
    groups: Groups
    activation: str
    gating: str

    @classmethod
    def make(
        cls,
        dtype,
        counts,
        hidden,
        inner,
        activation="silu",
        gating="concat",
        bias=False,
        gather=False,
    ):
        """Seven tokens where ``gather``. Rows of no expert are NaN, or ask for token -1."""
        groups = Groups.of(counts, alignment=4)
        experts, width = len(counts), inner * (1 if gating == "none" else 2)
        if gather:
            x = normal((7, hidden), dtype)
            row_tokens = (torch.arange(groups.rows(), dtype=torch.int32) * 5 + 2) % 7
            row_tokens[~groups.live()] = -1
        else:
            x, row_tokens = normal((groups.rows(), hidden), dtype), None
            x[~groups.live()] = float("nan")
        return cls(
            x,
            row_tokens,
            normal((experts, width, hidden), dtype, scale=hidden**-0.5),
            normal((experts, width), dtype) if bias else None,
            normal((experts, hidden, inner), dtype, scale=inner**-0.5),
            normal((experts, hidden), dtype) if bias else None,
            groups,
            activation,
            gating,
        )

    def run(self, tile, **options):
        """-> (hidden rows, output, both launches' reports)"""
        kind = ACTIVATIONS.index(self.activation)
        hidden, up = run_gemm(
            tile,
            self.x,
            self.gate_up,
            self.gate_up_bias,
            self.groups,
            self.row_tokens,
            self.gating,
            kind,
            **options,
        )
        y, down = run_gemm(tile, hidden, self.down, self.down_bias, self.groups, **options)
        return hidden, y, [up, down]

    def reference(self, dtype):
        """capmoe_kernels.reference in ``dtype``."""

        def cast(tensor):
            return None if tensor is None else tensor.to(dtype)

        return grouped_mlp(
            cast(self.x),
            cast(self.gate_up),
            cast(self.down),
            cast(self.gate_up_bias),
            cast(self.down_bias),
            self.groups.offsets,
            self.groups.counts,
            self.row_tokens,
            self.activation + ("_no_mul" if self.gating == "none" else ""),
            self.gating,
        )

    def check(self, tile, **options):
        """Live rows are right, others untouched. -> run()"""
        hidden, y, reports = self.run(tile, **options)
        live = self.groups.live()
        assert hidden[~live].isnan().all()
        assert y[~live].isnan().all()
        truth, same = self.reference(torch.float64), self.reference(self.x.dtype)
        assert_close_to_truth(y[live], truth[live], same[live])
        return hidden, y, reports


# "Warpgroup" is for sm_90a and 16-bit elements, the others for sm_80.
TILES = ["Few", "Some", "Many", "Warpgroup", "Unaligned"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY = [
    pytest.param(tile, dtype, id=f"{tile}-{NAMES[dtype].strip('_')}")
    for tile in TILES
    for dtype in DTYPES
    if (tile, dtype) != ("Warpgroup", torch.float32)
]
every_tile = pytest.mark.parametrize(("tile", "dtype"), EVERY)
SAMPLE_COUNTS = {
    "Few": [3, 0, 20, 0, 1, 16],
    "Some": [3, 0, 67, 0, 1, 32],
    "Many": [5, 0, 130, 0],
    "Warpgroup": [5, 0, 130, 0],
    "Unaligned": [3, 0, 67, 0],
}


@every_tile
def test_activations(tile, dtype):
    """Every activation in some gating, with and without biases and a gather, in two schedules."""
    for i, activation in enumerate(ACTIVATIONS):
        gating = "interleaved" if activation == "swigluoai" else GATINGS[i % 3]
        options = {"bias": i % 2 == 0, "gather": i in (1, 2)}
        layer = Layer.make(dtype, SAMPLE_COUNTS[tile], 40, 24, activation, gating, **options)
        layer.check(tile, seed=3 * (i % 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # float16 overflows
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(dtype, activation):
    """Projections to about +-100: clamps, tails, overflow of exp; gated and plain."""
    for gating in GATINGS[activation == "swigluoai" : 2]:
        layer = Layer.make(dtype, [9, 4], 16, 24, activation, gating)
        layer.gate_up *= 30
        layer.check("Few")


@dtypes
@pytest.mark.parametrize(
    ("hidden", "inner"), [(8, 24), (24, 8), (40, 136), (136, 40), (100, 33), (33, 100), (1, 1)]
)
def test_tails(dtype, hidden, inner):
    """Sizes that are no whole tile, nor, for the last three, whole chunks of 16 bytes."""
    aligned = hidden % 8 == 0 and inner % 8 == 0
    for tile in ["Few", "Some", "Many"] if aligned else ["Unaligned"]:
        for i, gating in enumerate(GATINGS):
            Layer.make(dtype, [5, 0, 18], hidden, inner, "silu", gating, bias=i == 1).check(tile)


def test_aligned_and_unaligned_agree():
    """A size that both take: the same bits, since both sum in the same order."""
    layer = Layer.make(torch.bfloat16, [5, 0, 40], 72, 40, bias=True)
    for got, expected in zip(layer.run("Unaligned")[:2], layer.run("Some")[:2], strict=True):
        assert same_bits(got, expected)


@dtypes
def test_interleaved_is_concat_shuffled(dtype):
    concat = Layer.make(dtype, [5, 0, 18], 40, 24, bias=True)
    order = torch.arange(48).view(2, 24).t().reshape(-1)
    interleaved = replace(
        concat,
        gate_up=concat.gate_up[:, order].contiguous(),
        gate_up_bias=concat.gate_up_bias[:, order].contiguous(),
        gating="interleaved",
    )
    assert same_bits(interleaved.run("Some")[1], concat.run("Some")[1])


@every_tile
def test_bits_depend_on_nothing_else(tile, dtype):
    """Grids, schedules, and neighbours with NaN: a row's bits are its own."""
    layer = Layer.make(dtype, [9, 0, 21], 72, 40)
    first = layer.check(tile, grid=1)[1]
    live = layer.groups.live()
    for grid, seed in [(2, 0), (40, 3)]:
        assert same_bits(layer.run(tile, grid=grid, seed=seed)[1][live], first[live])
    layer.x[4] = float("nan")
    layer.gate_up[1] = float("nan")
    spoilt = layer.run(tile)[1]
    assert spoilt[4].isnan().all()
    live[4] = False
    assert same_bits(spoilt[live], first[live])


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    "counts", [[0, 0, 0], [0, 0, 150, 0], [1], [64, 0, 0], [0, 0, 129], [7, 530, 3]]
)
def test_counts(tile, counts):
    """No rows, one expert with all, whole tiles and one more, more tiles than go together."""
    Layer.make(torch.bfloat16, counts, 16, 136).check(tile)


@pytest.mark.parametrize("experts", [127, 128, 129, 300, 4096])
def test_many_experts(experts):
    """More experts than threads: a few with rows, at both ends and between."""
    counts = [0] * experts
    for e in {0, 3, experts // 2, experts - 2, experts - 1}:
        counts[e] = 1 + e % 19
    Layer.make(torch.float16, counts, 8, 8).check("Few")


@dtypes
def test_long_sums(dtype):
    """A float32 chain of 2048 would be further from the truth than the rule allows."""
    Layer.make(dtype, [5], 2048, 40).check("Few")


def test_identity_in_float32_is_exact():
    eye = torch.eye(40).expand(2, 40, 40).contiguous()
    layer = Layer.make(torch.float32, [9, 4], 40, 40, "relu", "none")
    layer.x = layer.x.abs()
    live = layer.groups.live()
    y = replace(layer, gate_up=eye, down=eye).run("Few")[1]
    assert y[live].equal(layer.x[live])


# ---------------------------------------------------------------------- what the main loop costs


def up_counts(dtype, tile, rows, hidden, inner, grid=1):
    layer = Layer.make(dtype, [rows], hidden, inner, gather=True)
    arguments = (layer.x, layer.gate_up, None, layer.groups, layer.row_tokens, "concat", 0)
    return run_gemm(tile, *arguments, grid=grid)[1].counts


@pytest.mark.parametrize(("tile", "limit"), [("Many", 2.7), ("Some", 4.1), ("Warpgroup", 1.1)])
def test_main_loop(tile, limit):
    """Per stage: instructions of a warp per HMMA, no bank conflict, and no byte twice."""
    shape = shape_of(torch.bfloat16, tile, 1)
    arguments = (torch.bfloat16, tile, shape.rows)
    short = up_counts(*arguments, 128, shape.weights // 2)
    long = up_counts(*arguments, 384, shape.weights // 2)
    more = {name: long[name] - short[name] for name in long}
    per_mma = 2 * 16 * 8 * 16
    assert more["tensor_flops"] == 2 * shape.rows * shape.weights * 256
    assert more["warp_instructions"] / (more["tensor_flops"] / per_mma) <= limit
    assert more["shared_wavefronts"] == 4 * more["shared_requests"]
    assert more["global_load_bytes"] == 2 * (shape.rows + shape.weights) * 256


@dtypes
def test_bytes_of_a_launch(dtype):
    """Rows and weights once per tile that needs them, output once, in whole sectors."""
    rows, hidden, inner, size = 96, 256, 256, dtype.itemsize
    shape = shape_of(dtype, "Some", 1)
    counts = up_counts(dtype, "Some", rows, hidden, inner, grid=4)
    column_blocks, row_blocks = 2 * inner // shape.weights, -(-rows // shape.rows)
    loads = size * hidden * (rows * column_blocks + 2 * inner * row_blocks)
    assert loads <= counts["global_load_bytes"] <= 1.05 * loads
    assert counts["global_store_bytes"] == size * rows * inner
    assert counts["global_store_sectors"] * 32 == counts["global_store_bytes"]
