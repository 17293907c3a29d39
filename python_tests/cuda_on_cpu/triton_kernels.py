"""Triton kernels in the style of Triton's tutorials, compiled to PTX without a GPU."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def add(x, y, out, count, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    mask = at < count
    tl.store(out + at, tl.load(x + at, mask=mask) + tl.load(y + at, mask=mask), mask=mask)


@triton.jit
def softmax(x, out, columns, block: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, block)
    mask = at < columns
    values = tl.load(x + row * columns + at, mask=mask, other=-float("inf"))
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * columns + at, powers / tl.sum(powers, axis=0), mask=mask)


@triton.jit
def layer_norm(x, weight, bias, out, columns, eps, block: tl.constexpr):
    row = tl.program_id(0)
    mean = tl.zeros([block], dtype=tl.float32)
    for start in range(0, columns, block):
        at = start + tl.arange(0, block)
        mean += tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
    mean = tl.sum(mean, axis=0) / columns
    variance = tl.zeros([block], dtype=tl.float32)
    for start in range(0, columns, block):
        at = start + tl.arange(0, block)
        value = tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
        value = tl.where(at < columns, value - mean, 0.0)
        variance += value * value
    scale = 1 / tl.sqrt(tl.sum(variance, axis=0) / columns + eps)
    for start in range(0, columns, block):
        at = start + tl.arange(0, block)
        mask = at < columns
        value = tl.load(x + row * columns + at, mask=mask, other=0.0).to(tl.float32)
        value = (value - mean) * scale * tl.load(weight + at, mask=mask)
        tl.store(out + row * columns + at, value + tl.load(bias + at, mask=mask), mask=mask)


@triton.jit
def matmul(
    a, b, c, rows, columns, depth,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(rows, block_m), tl.cdiv(columns, block_n)
    in_group = group * tiles_n
    first_m = program // in_group * group
    size = min(tiles_m - first_m, group)
    tile_m = first_m + program % in_group % size
    tile_n = program % in_group // size
    m = tile_m * block_m + tl.arange(0, block_m)
    n = tile_n * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    left = a + m[:, None] * depth + k[None, :]
    right = b + k[:, None] * columns + n[None, :]
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, depth, block_k):
        inside = start + k < depth
        x = tl.load(left, mask=(m[:, None] < rows) & inside[None, :], other=0.0)
        y = tl.load(right, mask=inside[:, None] & (n[None, :] < columns), other=0.0)
        total = tl.dot(x, y, total)
        left += block_k
        right += block_k * columns
    mask = (m[:, None] < rows) & (n[None, :] < columns)
    place = c + m[:, None] * columns + n[None, :]
    tl.store(place, total.to(c.dtype.element_ty), mask=mask)


@triton.jit
def integer_matmul(
    a, b, c, rows, columns, depth,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(columns, block_n)
    m = tl.program_id(0) // tiles_n * block_m + tl.arange(0, block_m)
    n = tl.program_id(0) % tiles_n * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    left = a + m[:, None] * depth + k[None, :]
    right = b + k[:, None] * columns + n[None, :]
    total = tl.zeros((block_m, block_n), dtype=tl.int32)
    for start in range(0, depth, block_k):
        inside = start + k < depth
        x = tl.load(left, mask=(m[:, None] < rows) & inside[None, :], other=0)
        y = tl.load(right, mask=inside[:, None] & (n[None, :] < columns), other=0)
        total = tl.dot(x, y, total, out_dtype=tl.int32)
        left += block_k
        right += block_k * columns
    mask = (m[:, None] < rows) & (n[None, :] < columns)
    tl.store(c + m[:, None] * columns + n[None, :], total, mask=mask)


@triton.jit
def attention(
    q, k, v, out, length, scale,
    causal: tl.constexpr, width: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """One head per program_id(1); the softmax is kept up to date key block by key block."""
    head = tl.program_id(1) * length * width
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.arange(0, block_n)
    d = tl.arange(0, width)
    at = head + m[:, None] * width + d[None, :]
    query = tl.load(q + at, mask=m[:, None] < length, other=0.0)
    largest = tl.full([block_m], -float("inf"), dtype=tl.float32)
    norm = tl.zeros([block_m], dtype=tl.float32)
    total = tl.zeros([block_m, width], dtype=tl.float32)
    end = (tl.program_id(0) + 1) * block_m if causal else length
    for start in range(0, end, block_n):
        key = start + n
        inside = key < length
        keys = tl.load(
            k + head + key[None, :] * width + d[:, None], mask=inside[None, :], other=0.0
        )
        score = tl.dot(query, keys) * scale * 1.44269504
        score = tl.where(inside[None, :], score, -float("inf"))
        if causal:
            score = tl.where(m[:, None] >= key[None, :], score, -float("inf"))
        larger = tl.maximum(largest, tl.max(score, axis=1))
        power = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(largest - larger)
        norm = norm * shrink + tl.sum(power, axis=1)
        values = tl.load(
            v + head + key[:, None] * width + d[None, :], mask=inside[:, None], other=0.0
        )
        total = tl.dot(power.to(values.dtype), values, total * shrink[:, None])
        largest = larger
    total = total / norm[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=m[:, None] < length)


@triton.jit
def atomic_histogram(bins, counts, count, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    mask = at < count
    tl.atomic_add(counts + tl.load(bins + at, mask=mask), 1, mask=mask)


@triton.jit
def block_histogram(bins, counts, count, block: tl.constexpr, num_bins: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    mask = at < count
    found = tl.histogram(tl.load(bins + at, mask=mask, other=0), num_bins, mask=mask)
    tl.atomic_add(counts + tl.arange(0, num_bins), found)


@triton.jit
def cumulative_sum(x, out, columns, block: tl.constexpr):
    at = tl.arange(0, block)
    mask = at < columns
    row = tl.program_id(0) * columns
    tl.store(out + row + at, tl.cumsum(tl.load(x + row + at, mask=mask, other=0)), mask=mask)


@triton.jit
def decay(a_left, b_left, a_right, b_right):
    return a_left * a_right, b_left * a_right + b_right


@triton.jit
def linear_recurrence(a, b, out, columns, block: tl.constexpr):
    """h[i] = a[i] * h[i - 1] + b[i]."""
    at = tl.arange(0, block)
    mask = at < columns
    row = tl.program_id(0) * columns
    factors = tl.load(a + row + at, mask=mask, other=1.0)
    terms = tl.load(b + row + at, mask=mask, other=0.0)
    _, h = tl.associative_scan((factors, terms), 0, decay)
    tl.store(out + row + at, h, mask=mask)


@triton.jit
def sort_rows(x, out, rows_per_program: tl.constexpr, columns: tl.constexpr):
    row = tl.program_id(0) * rows_per_program + tl.arange(0, rows_per_program)
    at = row[:, None] * columns + tl.arange(0, columns)[None, :]
    tl.store(out + at, tl.sort(tl.load(x + at), descending=True))


@triton.jit
def top_k(logits, weights, ids, experts: tl.constexpr, k: tl.constexpr):
    """Softmax of one token's logits and its k largest entries; ties go to the lower index."""
    token = tl.program_id(0)
    at = tl.arange(0, experts)
    logit = tl.load(logits + token * experts + at)
    power = tl.exp(logit - tl.max(logit, axis=0))
    power /= tl.sum(power, axis=0)
    for i in tl.static_range(k):
        best = tl.argmax(power, axis=0)
        tl.store(weights + token * k + i, tl.max(power, axis=0))
        tl.store(ids + token * k + i, best)
        power = tl.where(at == best, -1.0, power)


@dataclass
class Compiled:
    ptx: str
    name: str
    shared: int
    num_warps: int

    def run(self, emulate, grid, *args, **options):
        """Launches it; pointers to scratch memory, which Triton appends, are null."""
        declared = re.search(rf"\.entry {self.name}\((.*?)\)", self.ptx, re.DOTALL)[1]
        scratch = [None] * (declared.count(".param") - len(args))
        kernel = emulate(self.ptx, self.name)
        return kernel[grid, 32 * self.num_warps, self.shared](*args, *scratch, **options)


@functools.cache
def compile_for(sm, fn, signature, aligned="", num_warps=4, num_stages=3, **constants):
    """`signature` is "name:type ..." of the runtime arguments, `aligned` names multiples of 16."""
    types = dict(argument.split(":") for argument in signature.split())
    types |= dict.fromkeys(constants, "constexpr")
    multiples = {(fn.arg_names.index(name),): [("tt.divisibility", 16)] for name in aligned.split()}
    built = triton.compile(
        ASTSource(fn=fn, signature=types, constexprs=constants, attrs=multiples),
        target=GPUTarget("cuda", sm, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    return Compiled(built.asm["ptx"], built.metadata.name, built.metadata.shared, num_warps)
