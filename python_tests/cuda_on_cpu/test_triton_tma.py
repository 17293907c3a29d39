"""Triton's tensor descriptors on sm_90: made by the host, and by the kernel in global scratch."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from cuda_on_cpu import Const, emulate
from cuda_on_cpu.errors import EmulationError, SharedRace
from cuda_on_cpu.tensor_map import tensor_map

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

SEEDS = range(4)
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "i8"}


@triton.jit
def add_by_device_descriptors(x, y, out, rows, columns, height: tl.constexpr, width: tl.constexpr):
    a = tl.make_tensor_descriptor(x, [rows, columns], [columns, 1], [height, width])
    b = tl.make_tensor_descriptor(y, [rows, columns], [columns, 1], [height, width])
    c = tl.make_tensor_descriptor(out, [rows, columns], [columns, 1], [height, width])
    row, column = tl.program_id(0) * height, tl.program_id(1) * width
    c.store([row, column], a.load([row, column]) + b.load([row, column]))


@triton.jit
def running_sum(x, out, rows, height: tl.constexpr, width: tl.constexpr):
    """Down the rows of a tile, in a loop that Triton may pipeline."""
    column = tl.program_id(0) * width
    total = tl.zeros([height, width], dtype=tl.float32)
    for row in range(0, rows, height):
        total += x.load([row, column])
        out.store([row, column], total)


@triton.jit
def softmax(x, out, columns, block: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, block)
    values = tl.load(x + row * columns + at, mask=at < columns, other=-float("inf"))
    values = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * columns + at, values / tl.sum(values, axis=0), mask=at < columns)


def compile_for_sm90(fn, signature, multiples=(), num_ctas=1, **constants):
    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    attributes = {(fn.arg_names.index(n),): [("tt.divisibility", 16)] for n in multiples}
    source = ASTSource(fn=fn, signature=types, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", 90, 32)
    options = {"num_warps": 4, "num_stages": 3, "num_ctas": num_ctas}
    return triton.compile(source, target=target, options=options)


@functools.cache
def device_add(short, height, width):
    pointers = dict.fromkeys(("x", "y", "out"), f"*{short}")
    signature = {**pointers, "rows": "i32", "columns": "i32"}
    multiples = ("x", "y", "out", "columns")
    fn = add_by_device_descriptors
    return compile_for_sm90(fn, signature, multiples, height=height, width=width)


def numbers(dtype, *shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-50, 50, shape, generator=generator).to(dtype)


def run_device_add(ptx, built, dtype, seed, on_gpu=False):
    x, y = (numbers(dtype, 50, 80 + i)[:, :80].contiguous() for i in range(2))
    out = torch.zeros_like(x)
    blocks = -(-50 // 32), -(-80 // 64)
    memory = torch.zeros(blocks[0] * blocks[1] * built.metadata.global_scratch_size + 128)
    scratch = memory.view(torch.uint8)[-memory.data_ptr() % 128 :]
    args = Const(x), Const(y), out, 50, 80, scratch, None
    report = emulate(ptx)[blocks, 128, built.metadata.shared](*args, seed=seed, on_gpu=on_gpu)
    assert torch.equal(out, x + y)
    return report


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_descriptors_that_the_kernel_makes(dtype, seed):
    built = device_add(TYPES[dtype], 32, 64)
    scratch = {5: False}  # maps, whose bytes a GPU lays out otherwise
    report = run_device_add(built.asm["ptx"], built, dtype, seed, on_gpu=scratch)
    assert report.warnings == []
    assert report.counts["bulk_copies"] == 4 * 3 * -(-64 * dtype.itemsize // 128)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_its_fences_are_needed_before_the_store_only(which, seed):
    """The first two stand before loads, the third between the tile's writes and its store."""
    built = device_add("fp16", 32, 64)
    parts = built.asm["ptx"].split("fence.proxy.async.shared::cta;")
    assert len(parts) == 4
    glue = ["fence.proxy.async.shared::cta;"] * 3
    glue[which] = ""
    ptx = "".join(a + b for a, b in zip(parts, [*glue, ""], strict=True))
    if which == 2:
        with pytest.raises(SharedRace, match=r"no fence.proxy.async"):
            run_device_add(ptx, built, torch.float16, seed)
    else:
        run_device_add(ptx, built, torch.float16, seed)


def host_descriptor(tensor, meta):
    """As Triton's launcher passes it: the map, then shape and strides."""
    swizzle = {0: 0, 1: 32, 2: 64, 3: 128}[meta["swizzle"]]
    inner = getattr(tensor, "tensor", tensor)
    a_map = tensor_map(tensor, tuple(meta["block_size"]), swizzle=swizzle)
    return [a_map, *inner.shape, *inner.stride()]


@pytest.mark.parametrize("seed", SEEDS)
def test_descriptors_that_the_host_makes(seed):
    signature = dict.fromkeys(("x", "out"), "tensordesc<fp32[16,32]>") | {"rows": "i32"}
    built = compile_for_sm90(running_sum, signature, height=16, width=32)
    x = numbers(torch.float32, 96, 64)
    out = torch.zeros_like(x)
    metas = built.metadata.tensordesc_meta
    args = [*host_descriptor(Const(x), metas[0]), *host_descriptor(out, metas[1]), 96]
    scratch = [None, None]
    kernel = emulate(built.asm["ptx"])
    report = kernel[2, 128, built.metadata.shared](*args, *scratch, seed=seed)
    assert torch.equal(out, x.view(6, 16, 64).cumsum(0).view(96, 64))
    assert report.warnings == []


@pytest.mark.parametrize("num_ctas", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_that_is_a_cluster(num_ctas, seed):
    """The row's maximum and sum go through the shared memory of all its blocks."""
    signature = {"x": "*fp32", "out": "*fp32", "columns": "i32"}
    built = compile_for_sm90(softmax, signature, num_ctas=num_ctas, block=1024)
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1))
    out = torch.full_like(x, float("nan"))
    kernel = emulate(built.asm["ptx"])
    grid = 3 * num_ctas
    args = Const(x), out, 1000, None, None
    report = kernel[grid, 128, built.metadata.shared](*args, seed=seed, on_gpu=1e-5)
    torch.testing.assert_close(out, x.softmax(1))
    assert report.warnings == []


def test_the_blocks_of_a_cluster_must_wait_for_each_other():
    signature = {"x": "*fp32", "out": "*fp32", "columns": "i32"}
    built = compile_for_sm90(softmax, signature, num_ctas=2, block=1024)
    ptx = built.asm["ptx"]
    pair = re.compile(
        r"barrier\.cluster\.arrive\.aligned;.*?barrier\.cluster\.wait\.aligned;", re.S
    )
    x, out = torch.randn(1, 1000), torch.zeros(1, 1000)
    for which in range(len(pair.findall(ptx))):
        found = list(pair.finditer(ptx))[which]
        broken = ptx[: found.start()] + "bar.sync 0;" + ptx[found.end() :]
        with pytest.raises(EmulationError):
            emulate(broken)[2, 128, built.metadata.shared](Const(x), out, 1000, None, None)
