"""What the main loop of the grouped MLP's CUDA kernels costs, and what a launch moves."""

from __future__ import annotations

import shutil

import pytest
import torch

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

from cuda_grouped_mlp import Layer, dtypes, run_gemm, shape_of


def up_counts(dtype, tile, rows, hidden, inner, grid=1):
    layer = Layer.make(dtype, [rows], hidden, inner, gather=True)
    arguments = (layer.x, layer.gate_up, None, layer.groups, layer.row_tokens, "concat", 0)
    return run_gemm(tile, *arguments, grid=grid)[1].counts


@pytest.mark.parametrize(("tile", "limit"), [("Many", 2.7), ("Some", 2.9), ("Warpgroup", 1.1)])
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
