"""The network that finds the best of many integers, best first, in all rows at once.

All entries of a thread meet before those of other threads do: a comparison is two instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def best(entries, width: tl.constexpr):
    """[R, N] -> [R, width]: each row's largest, descending; both are powers of two."""
    rows: tl.constexpr = entries.shape[0]
    steps: tl.constexpr = tl.standard._log2(width)
    rounds: tl.constexpr = tl.standard._log2(entries.shape[1]) - steps
    x = entries
    for i in tl.static_range(steps):
        x = tl.reshape(turned(x, 1 << i), [rows, x.shape[1]])
        x = merged(x, i + 1)
    for _ in tl.static_range(rounds):
        # The larger of i and width - 1 - i of two runs: their largest, and bitonic.
        x = tl.reshape(tl.max(turned(x, width), axis=2), [rows, x.shape[1] // 2])
        x = merged(x, steps)
    return x


@triton.jit
def merged(x, steps: tl.constexpr):
    """Sorts bitonic runs of 2**steps."""
    for i in tl.static_range(steps):
        x = exchanged(x, 1 << (steps - 1 - i))
    return x


@triton.jit
def exchanged(x, step: tl.constexpr):
    """The larger of i and i + step comes first, in every run of 2 * step."""
    rows: tl.constexpr = x.shape[0]
    size: tl.constexpr = x.shape[1]
    y = tl.reshape(x, [rows, size // (2 * step), 2, step])
    larger = tl.max(y, axis=2, keep_dims=True)
    smaller = tl.min(y, axis=2, keep_dims=True)
    second = tl.arange(0, 2)[None, None, :, None] == 1
    return tl.reshape(tl.where(second, smaller, larger), [rows, size])


@triton.jit
def turned(x, run: tl.constexpr):
    """[R, N] -> [R, N / (2 * run), 2, run]: every second run backwards."""
    rows: tl.constexpr = x.shape[0]
    size: tl.constexpr = x.shape[1]
    y = tl.reshape(x, [rows, size // (2 * run), 2, run])
    second = tl.arange(0, 2)[None, None, :, None] == 1
    return tl.where(second, tl.flip(y, 3), y)
