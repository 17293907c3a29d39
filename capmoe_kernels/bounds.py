"""How many tokens an expert may keep, and how many rows that can be at most, in exact integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import Literal, get_args

import torch

from ._checks import require_choice, require_int

Rounding = Literal["ceil", "floor"]

# Factors are fractions with denominators up to this, so that 64-bit integers hold
# factor * top_k * tokens for every size anyone runs, on every device.
_MAX_DENOMINATOR = 10**6


def exact_factor(factor: Real | float) -> Fraction | None:
    """The fraction nearest to ``factor``'s decimal digits; None where it is infinite.

    1.1 is 11/10, 0.3333333333333333 is 1/3; denominators go up to a million.

    Raises:
        TypeError: ``factor`` is not a real number.
        ValueError: ``factor`` is NaN or negative, or so small that it would be 0.
    """
    if isinstance(factor, bool) or not isinstance(factor, Real):
        raise TypeError(f"factor must be a real number, got {type(factor).__name__}")
    if math.isnan(factor) or factor < 0:
        raise ValueError(f"factor must be a number >= 0 or inf, got {factor}")
    if math.isinf(factor):
        return None
    exact = Fraction(factor) if isinstance(factor, Fraction) else Fraction(str(factor))
    if 0 < exact < Fraction(1, _MAX_DENOMINATOR):
        raise ValueError(f"factor must be 0 or at least 1e-6, got {factor}")
    return exact.limit_denominator(_MAX_DENOMINATOR)


def share(
    num_tokens: int, num_experts: int, top_k: int, factor: tuple[int, int], rounding: str
) -> int:
    """``factor * top_k * num_tokens / num_experts`` in integers; ``num_tokens`` may be symbolic."""
    numerator = factor[0] * top_k * num_tokens
    denominator = factor[1] * num_experts
    if rounding == "ceil":
        numerator = numerator + denominator - 1
    return numerator // denominator


def expert_capacity(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    factor: float,
    rounding: Rounding = "ceil",
) -> int:
    """Tokens an expert may keep: the even share of the pairs, times ``factor``, rounded.

    ``C = factor * top_k * num_tokens / num_experts`` (arXiv 2503.05066, equation 3), in exact
    integers: floating point gives ``ceil(0.8 * 6 * 40 / 64) == 4`` where 3 is right. C may exceed
    ``num_tokens``; it then bounds nothing.

    Args:
        num_tokens: tokens of this call, padding not counted, >= 0.
        num_experts: E, >= 1.
        top_k: experts a token asks for, 1 to E.
        factor: capacity factor, finite, 0 or at least 1e-6; read as the fraction nearest to its
            decimal digits with a denominator of at most a million.
        rounding: ``"ceil"`` (the paper's code) or ``"floor"`` (the paper's algorithms).

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
    """
    require_int("num_tokens", num_tokens, minimum=0)
    require_int("num_experts", num_experts, minimum=1)
    require_int("top_k", top_k, minimum=1, maximum=num_experts)
    require_choice("rounding", rounding, get_args(Rounding))
    exact = exact_factor(factor)
    if exact is None:
        raise ValueError("factor must be finite, got inf: dropless routing has no capacity")
    return share(num_tokens, num_experts, top_k, exact.as_integer_ratio(), rounding)


def rows_bound(
    num_tokens: int,
    num_experts: int,
    pairs_per_token: int,
    capacity: int,
    experts_per_budget: int,
    row_alignment: int,
) -> int:
    """Rows the packed buffer needs at most, from sizes the host knows; may be symbolic.

    Aligning an expert's rows adds fewer than ``row_alignment`` rows to each expert that has any.
    Where experts share a budget, it may be spread over them so that each is rounded up.
    """
    pairs = num_tokens * pairs_per_token
    busy = _smaller(num_experts, pairs)
    spread = align(pairs + busy * (row_alignment - 1), row_alignment)
    full = align(capacity, row_alignment)
    if experts_per_budget > 1:
        full = capacity + row_alignment - 1
    return _smaller(spread, align(num_experts * full, row_alignment))


def _smaller(a: int, b: int) -> int:
    """``min`` that neither specialises nor breaks a graph where an operand is symbolic."""
    if type(a) is int and type(b) is int:
        return min(a, b)
    bound: int = torch.sym_min(a, b)  # type: ignore[no-untyped-call]
    return bound


def align(rows: int, row_alignment: int) -> int:
    """``rows`` rounded up to a multiple of ``row_alignment``."""
    return (rows + row_alignment - 1) // row_alignment * row_alignment


def host_capacity(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    factor: Sequence[int] | None,
    limit: int | None,
    rounding: str,
) -> int:
    """min(C, T); may be symbolic. ``factor`` is (numerator, denominator)."""
    if limit is None and factor is None:
        return num_tokens
    if limit is None:
        assert factor is not None
        limit = share(num_tokens, num_experts, top_k, (factor[0], factor[1]), rounding)
    return _smaller(limit, num_tokens)


def select_rows(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    pairs_per_token: int,
    factor: Sequence[int] | None,
    limit: int | None,
    rounding: str,
    experts_per_budget: int,
    layout: str,
    row_alignment: int,
) -> int:
    """N, the rows ``capmoe::select`` allocates, from sizes the host knows; may be symbolic."""
    capacity = host_capacity(num_tokens, num_experts, top_k, factor, limit, rounding)
    if layout == "padded":
        return num_experts * align(capacity, row_alignment)
    return rows_bound(
        num_tokens, num_experts, pairs_per_token, capacity, experts_per_budget, row_alignment
    )
