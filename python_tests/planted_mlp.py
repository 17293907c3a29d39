"""Probes of the grouped MLP's CUDA kernels: small layers, each under one schedule."""

from __future__ import annotations

import torch

from cuda_grouped_mlp import Layer, run_gemm, shape_of

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def few(seed: int) -> None:
    """Experts with one row block, none and two, of which the last ends with the buffer."""
    Layer.make(BF16, [5, 0, 20], 136, 40).check("Few", grid=2, seed=seed)


def few_in_turn(seed: int) -> None:
    """All pieces in one block."""
    Layer.make(BF16, [5, 0, 20], 136, 40).check("Few", grid=1, seed=seed)


def whole_stages(seed: int) -> None:
    Layer.make(BF16, [5, 0, 18], 64, 128).check("Few", grid=2, seed=seed)


def some(seed: int) -> None:
    """Two slices of rows in a warp; biases, and rows through tokens."""
    layer = Layer.make(BF16, [3, 0, 68], 200, 72, bias=True, gather=True)
    layer.check("Some", grid=2, seed=seed)


def half(seed: int) -> None:
    Layer.make(F16, [5, 0, 18], 72, 40).check("Few", grid=2, seed=seed)


def interleaved(seed: int) -> None:
    layer = Layer.make(BF16, [5, 0, 18], 72, 40, "swigluoai", "interleaved", bias=True)
    layer.check("Few", grid=2, seed=seed)


def far_out(seed: int) -> None:
    """Projections to about +-100: beyond every clamp."""
    layer = Layer.make(BF16, [9, 4], 16, 24, "swigluoai", "interleaved")
    layer.gate_up *= 30
    layer.check("Few", grid=2, seed=seed)


def floats(seed: int) -> None:
    """Depths of three stages and of more than the 64 products that make a part."""
    Layer.make(F32, [5, 0, 68], 136, 40).check("Some", grid=2, seed=seed)


def long_float_sums(seed: int) -> None:
    Layer.make(F32, [5], 2048, 40).check("Few", grid=2, seed=seed)


def unaligned(seed: int) -> None:
    Layer.make(F16, [5, 0, 68], 100, 33).check("Unaligned", grid=2, seed=seed)


def many_blocks_of_rows(seed: int) -> None:
    """More row blocks of an expert than go together, two of columns, and an expert after it."""
    Layer.make(BF16, [280, 3], 8, 40).check("Few", grid=2, seed=seed)


def many_experts(seed: int) -> None:
    """Two experts for a thread."""
    counts = [e % 9 if e % 31 == 0 else 0 for e in range(250)]
    Layer.make(BF16, counts, 8, 8).check("Few", grid=2, seed=seed)


def far_apart(seed: int) -> None:
    """Of a tensor of 2 GiB, which nobody fills, the row of a token beyond them."""
    tokens, layer = 2**31 // 16 + 8, Layer.make(BF16, [4], 8, 8)
    x = torch.empty(tokens, 8, dtype=BF16)
    x[-4:] = layer.x
    chosen = torch.arange(tokens - 4, tokens, dtype=torch.int32)
    arguments = (layer.gate_up, None, layer.groups)
    expected, _ = run_gemm("Few", layer.x, *arguments, None, "concat", 0, grid=1)
    out, _ = run_gemm("Few", x, *arguments, chosen, "concat", 0, grid=1, seed=seed)
    assert torch.equal(out, expected)


def without_conflicts(seed: int) -> None:
    """No bank conflict: a warp's 512 bytes of ldmatrix and of cp.async take four wavefronts."""
    shape = shape_of(BF16, "Many", 1)
    layer, counts = Layer.make(BF16, [shape.rows], 128, 64), []
    for depth in (32, 128):
        x, weights = layer.x[:, :depth].contiguous(), layer.gate_up[:, :, :depth].contiguous()
        _, report = run_gemm("Many", x, weights, None, layer.groups, gating="concat", grid=1)
        counts.append(report.counts)
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert more["shared_wavefronts"] == 4 * more["shared_requests"] > 0


def warpgroups(seed: int) -> None:
    """In one block: a piece without rows for the second warpgroup, then one with rows for both."""
    Layer.make(BF16, [3, 0, 72], 328, 72).check("Warpgroup", grid=1, seed=seed)
