"""Scores of logits, and sums whose bits do not depend on how threads share a row."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.44269502162933349609375)  # a float32
LOG2_E_REST = tl.constexpr(1.92596303e-8)
LN_2 = tl.constexpr(0.693147182)


@triton.jit
def row_sum(x):
    """[R, N] -> [R, 1], by halves: the order of addition is that of the columns alone."""
    rows: tl.constexpr = x.shape[0]
    for _ in tl.static_range(tl.standard._log2(x.shape[1])):
        x = tl.sum(tl.reshape(x, [rows, 2, x.shape[1] // 2]), axis=1)
    return x


@triton.jit
def exp_negative(x):
    """exp of x <= 0: what the product's rounding loses is made good to first order."""
    x = tl.maximum(x, -150.0)  # below, exp is 0; -inf would make NaN of the correction
    product = x * LOG2_E
    lost = tl.fma(x, LOG2_E_REST, tl.fma(x, LOG2_E, -product))
    power = tl.exp2(product)
    return tl.fma(power, lost * LN_2, power)


@triton.jit
def sum_of_powers(logits, largest):
    """The softmax's denominator: small summands need no relative precision."""
    return row_sum(tl.exp2((logits - largest) * LOG2_E))


@triton.jit
def score(logits, largest, total, sigmoid: tl.constexpr):
    if sigmoid:
        power = exp_negative(-tl.abs(logits))
        return tl.where(logits >= 0.0, 1.0, power) / (1.0 + power)
    else:
        return exp_negative(logits - largest) / total
