"""Kernels that Triton compiles for sm_80 and sm_90a, run on the CPU, against torch."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const, emulate

pytest.importorskip("triton")

from cuda_on_cpu import triton_kernels as tk

SEEDS = range(4)
SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@pytest.fixture(params=[80, 90])
def sm(request):
    return request.param


def launch(kernel, grid, *args, seed, on_gpu=True):
    report = kernel.run(emulate, grid, *args, seed=seed, on_gpu=on_gpu)
    assert report.warnings == []
    return report


def random(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def unwritten(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan"), dtype=dtype)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("aligned", ["", "x y out count"])
@pytest.mark.parametrize("count", [16, 1024, 1040])
def test_add(count, aligned, seed):
    kernel = tk.compile_for(80, tk.add, "x:*fp32 y:*fp32 out:*fp32 count:i32", aligned, block=512)
    x, y, out = random(count), random(count + 1)[:count], unwritten(count)
    launch(kernel, -(-count // 512), Const(x), Const(y), out, count, seed=seed)
    assert torch.equal(out, x + y)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("columns", "num_warps"), [(256, 1), (250, 4), (1, 4), (200, 8)])
def test_softmax(sm, columns, num_warps, seed):
    signature = "x:*fp32 out:*fp32 columns:i32"
    kernel = tk.compile_for(sm, tk.softmax, signature, num_warps=num_warps, block=256)
    x, out = random(5, columns), unwritten(5, columns)
    launch(kernel, 5, Const(x), out, columns, seed=seed, on_gpu=1e-5)
    torch.testing.assert_close(out, x.softmax(1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("columns", [128, 300])
def test_layer_norm(columns, dtype, seed):
    short = SHORT[dtype]
    signature = f"x:*{short} weight:*fp32 bias:*fp32 out:*{short} columns:i32 eps:fp32"
    kernel = tk.compile_for(80, tk.layer_norm, signature, block=128)
    x, (weight, bias) = random(4, columns, dtype=dtype), random(2, columns)
    out = unwritten(4, columns, dtype=dtype)
    launch(
        kernel, 4, Const(x), Const(weight), Const(bias), out, columns, 1e-5, seed=seed, on_gpu=1e-5
    )
    expected = torch.nn.functional.layer_norm(x.float(), (columns,), weight, bias, 1e-5)
    torch.testing.assert_close(out, expected.to(dtype))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tiles", [(64, 64, 32, 4), (32, 64, 64, 2)])
@pytest.mark.parametrize("shape", [(64, 64, 64), (80, 112, 96), (16, 16, 16)])
def test_matmul(sm, shape, tiles, dtype, seed):
    rows, columns, depth = shape
    block_m, block_n, block_k, num_warps = tiles
    signature = "a:*T b:*T c:*T rows:i32 columns:i32 depth:i32".replace("T", SHORT[dtype])
    tile = {"block_m": block_m, "block_n": block_n, "block_k": block_k, "group": 2}
    aligned = "a b c rows columns depth"
    kernel = tk.compile_for(sm, tk.matmul, signature, aligned, num_warps, **tile)
    a, b = random(rows, depth, dtype=dtype), random(depth, columns, dtype=dtype)
    c = unwritten(rows, columns, dtype=dtype)
    grid = -(-rows // block_m) * -(-columns // block_n)
    report = launch(kernel, grid, Const(a), Const(b), c, *shape, seed=seed, on_gpu=1e-4)
    torch.testing.assert_close(c, (a.double() @ b.double()).to(dtype), rtol=1e-2, atol=1e-2)
    padded_depth = -(-depth // block_k) * block_k
    assert report.counts["tensor_flops"] == 2 * grid * block_m * block_n * padded_depth


# Pointers' types, how close, how close a GPU comes, and the PTX that it becomes. Sums have 160
# terms of about 16, of which an H100 keeps 13 bits where the operands have 8.
WARPGROUP_TYPES = {
    "fp8e4nv": (torch.float8_e4m3fn, 1e-5, 1.0, "m64n64k32.f32.e4m3.e4m3"),
    "fp8e5": (torch.float8_e5m2, 1e-5, 1.0, "m64n64k32.f32.e5m2.e5m2"),
    "fp32": (torch.float32, 2e-2, 1e-3, "m64n64k8.f32.tf32.tf32"),
    "i8": (torch.int8, 0, True, "m64n64k32.s32.s8.s8"),
    "bf16": (torch.bfloat16, 1e-5, 1e-3, "m64n64k16.f32.bf16.bf16"),
}


@pytest.mark.parametrize(
    ("block_m", "num_warps", "seed"), [(64, 4, 0), (64, 4, 1), (128, 4, 2), (128, 8, 3)]
)
@pytest.mark.parametrize("short", WARPGROUP_TYPES)
def test_warpgroup_matmul(short, block_m, num_warps, seed):
    dtype, close, on_gpu, instruction = WARPGROUP_TYPES[short]
    rows, columns, depth = 144, 80, 160
    out = torch.int32 if short == "i8" else torch.float32
    signature = f"a:*{short} b:*{short} c:*{'i32' if short == 'i8' else 'fp32'} "
    signature += "rows:i32 columns:i32 depth:i32"
    fn = tk.integer_matmul if short == "i8" else tk.matmul
    tile = {"block_m": block_m, "block_n": 64, "block_k": 64, "group": 2}
    kernel = tk.compile_for(90, fn, signature, "a b c rows columns depth", num_warps, **tile)
    assert instruction in kernel.ptx
    a, b = ((4 * random(*s)).to(dtype) for s in ((rows, depth), (depth, columns)))
    c = torch.full((rows, columns), -1, dtype=out)
    grid = -(-rows // block_m) * -(-columns // 64)
    sizes = (rows, columns, depth)
    launch(kernel, grid, Const(a), Const(b), c, *sizes, seed=seed, on_gpu=on_gpu)
    torch.testing.assert_close(c, (a.double() @ b.double()).to(out), rtol=close, atol=16 * close)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [64, 80])
def test_attention(sm, length, dtype, causal, seed):
    heads, width = 2, 32
    signature = "q:*T k:*T v:*T out:*T length:i32 scale:fp32".replace("T", SHORT[dtype])
    tile = {"causal": causal, "width": width, "block_m": 64, "block_n": 32}
    kernel = tk.compile_for(sm, tk.attention, signature, "q k v out", **tile)
    q, k, v = random(3, heads, length, width, dtype=dtype)
    out = unwritten(heads, length, width, dtype=dtype)
    grid = (-(-length // 64), heads)
    launch(
        kernel, grid, Const(q), Const(k), Const(v), out, length, width**-0.5, seed=seed, on_gpu=2e-3
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), is_causal=causal
    )
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("fn", "constants"), [(tk.atomic_histogram, {}), (tk.block_histogram, {"num_bins": 32})]
)
@pytest.mark.parametrize("count", [256, 700])
def test_histogram(count, fn, constants, seed):
    kernel = tk.compile_for(80, fn, "bins:*i32 counts:*i32 count:i32", block=256, **constants)
    bins = (random(count).abs() * 8).int().clamp(max=31)
    counts = torch.zeros(32, dtype=torch.int32)
    launch(kernel, -(-count // 256), Const(bins), counts, count, seed=seed)
    assert torch.equal(counts, bins.bincount(minlength=32).int())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("columns", [512, 333])
def test_cumulative_sum(columns, seed):
    signature = "x:*i32 out:*i32 columns:i32"
    kernel = tk.compile_for(80, tk.cumulative_sum, signature, block=512)
    x = (random(3, columns) * 100).int()
    out = torch.full_like(x, -(2**31))
    launch(kernel, 3, Const(x), out, columns, seed=seed)
    assert torch.equal(out, x.cumsum(1, dtype=torch.int32))


@pytest.mark.parametrize("seed", SEEDS)
def test_linear_recurrence(seed):
    columns = 200
    signature = "a:*fp32 b:*fp32 out:*fp32 columns:i32"
    kernel = tk.compile_for(80, tk.linear_recurrence, signature, block=256)
    a, b, out = random(2, columns).sigmoid(), random(2, columns), unwritten(2, columns)
    launch(kernel, 2, Const(a), Const(b), out, columns, seed=seed, on_gpu=1e-5)
    h, expected = torch.zeros(2), []
    for i in range(columns):
        h = a[:, i] * h + b[:, i]
        expected.append(h)
    torch.testing.assert_close(out, torch.stack(expected, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("dtype", "short"), [(torch.float32, "fp32"), (torch.int32, "i32")])
def test_sort(dtype, short, seed):
    signature = f"x:*{short} out:*{short}"
    kernel = tk.compile_for(80, tk.sort_rows, signature, "x out", rows_per_program=4, columns=128)
    x = (random(8, 128) * 1000).to(dtype)
    out = torch.zeros_like(x)
    launch(kernel, 2, Const(x), out, seed=seed)
    assert torch.equal(out, x.sort(1, descending=True).values)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_warps", [1, 4])
def test_top_k(sm, num_warps, seed):
    signature = "logits:*fp32 weights:*fp32 ids:*i32"
    kernel = tk.compile_for(sm, tk.top_k, signature, num_warps=num_warps, experts=64, k=6)
    logits = random(5, 64)
    logits[2] = 1.0
    weights, ids = unwritten(5, 6), torch.full((5, 6), -1, dtype=torch.int32)
    launch(kernel, 5, Const(logits), weights, ids, seed=seed, on_gpu=1e-5)
    best = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(weights, best.values[:, :6])
    assert torch.equal(ids.long(), best.indices[:, :6])
