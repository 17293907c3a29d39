"""Launches of the grouped MLP's CUDA kernels, tile by tile, in the emulator."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch

from cuda_on_cpu import Const, emulate
from cuda_sources import compiled, per_sources
from mlp_layer import Groups as Groups
from mlp_layer import MlpLayer

NAMES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}
GATINGS = ["none", "concat", "interleaved"]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "swigluoai", "relu", "relu2"]

SOURCE = """
#include "{header}"
namespace cuda = capmoe::cuda;
using T = {dtype};
using Tile = cuda::{tile};
template __global__ void capmoe::cuda::{kernel}(
    const T*, const int32_t*, const T*, const T*, const int32_t*, const int32_t*, T*, int, int, int,
    int, int, cuda::Gating, int, bool);
extern "C" __global__ void sizes(int experts, int* out) {{
  out[0] = Tile::kThreads;
  out[1] = Tile::kFixedBytes + cuda::Pieces::bytes(experts, Tile::kWarps);
  out[2] = Tile::kRows;
  out[3] = Tile::kWeights;
  out[4] = Tile::kDepth;
}}
"""


@per_sources
def kernels(dtype, tile):
    """(the kernel, the one that tells the tile's sizes)"""
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
    source = SOURCE.format(header=header, dtype=NAMES[dtype], tile=tile_type, kernel=kernel)
    ptx = compiled(source, "sm_90a" if tile == "Warpgroup" else "sm_80")
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
    kernels(dtype, tile)[1][1, 1](experts, out)
    return Shape(*out.tolist())


def run_gemm(
    tile, x, weights, bias, groups, row_tokens=None, gating="none", activation=-1, grid=3, seed=0
):
    """One launch. -> (out, NaN where nothing was written; the report)"""
    dtype, experts = x.dtype, len(groups.counts)
    columns = weights.shape[1] // (1 if gating == "none" else 2)
    out = torch.full((groups.rows(), columns), float("nan"), dtype=dtype)
    shape = shape_of(dtype, tile, experts)
    report = kernels(dtype, tile)[0][grid, shape.threads, shape.shared](
        Const(x),
        None if row_tokens is None else Const(row_tokens),
        Const(weights),
        None if bias is None else Const(bias),
        Const(groups.offsets),
        Const(groups.counts),
        out,
        len(x),
        len(out),
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


class Layer(MlpLayer):
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

    def check(self, tile, **options):
        """Live rows are right, others untouched. -> run()"""
        hidden, y, reports = self.run(tile, **options)
        assert hidden[~self.groups.live()].isnan().all()
        self.check_output(y)
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
