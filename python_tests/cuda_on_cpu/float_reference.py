"""IEEE arithmetic in exact fractions, rounded once: the value every float test expects."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

# precision in bits, smallest and largest exponent of normal numbers
FORMATS = {
    "f16": (11, -14, 15),
    "bf16": (8, -126, 127),
    "f32": (24, -126, 127),
    "f64": (53, -1022, 1023),
}
DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}


def round_integer(x: Fraction, mode: str) -> int:
    floor = x.numerator // x.denominator
    if mode == "rm":
        return floor
    if mode == "rp":
        return -(-x.numerator // x.denominator)
    if mode == "rz":
        return floor if x >= 0 else -(-x.numerator // x.denominator)
    rest = x - floor
    if rest == Fraction(1, 2):
        if mode == "rna":
            return floor + 1 if x > 0 else floor
        return floor + (floor & 1)
    return floor + int(rest > Fraction(1, 2))


def rounded(x: Fraction, kind: str, mode: str = "rn") -> float:
    """The finite number ``x`` in the format; a nonzero number that underflows keeps its sign."""
    if x == 0:
        return 0.0
    precision, lowest, highest = FORMATS[kind]
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    result = round_integer(x / step, mode) * step
    largest = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** highest
    if abs(result) > largest:
        inward = mode == "rz" or mode == ("rm" if x > 0 else "rp")
        result = largest if inward else math.inf
    return math.copysign(float(abs(result)), 1 if x > 0 else -1)


def square_root(x: Fraction) -> Fraction:
    """Exact where the root is rational, else 200 bits and a half: enough to round correctly."""
    scale = 400
    n = x.numerator * x.denominator << scale
    root = math.isqrt(n)
    exact = root * root == n
    return Fraction(2 * root + (not exact), 2 * x.denominator << scale // 2)


def corners(kind: str) -> list[float]:
    precision, lowest, highest = FORMATS[kind]
    tiny, least = 2.0 ** (lowest - precision + 1), 2.0**lowest
    largest = (2 - 2.0 ** (1 - precision)) * 2.0**highest
    step = 2.0 ** (1 - precision)
    values = [0.0, 1.0, 1 + step, 1 - step / 2, 1.5, 3.0, tiny, 3 * tiny, least - tiny, least]
    return [s * v for v in [*values, largest, largest / 2, 0.75 * least] for s in (1, -1)]


def randoms(kind: str, n: int, seed: int, spread: int = 12) -> torch.Tensor:
    """Random numbers of full precision over ``2 * spread`` binades."""
    g = torch.Generator().manual_seed(seed)
    mantissa = 1 + torch.rand(n, generator=g, dtype=torch.float64)
    exponent = torch.randint(-spread, spread + 1, (n,), generator=g).double()
    sign = torch.randint(0, 2, (n,), generator=g).double() * 2 - 1
    return (sign * mantissa * 2**exponent).to(DTYPES[kind])


def operands(kind: str, count: int, seed: int = 0, spread: int = 12) -> list[torch.Tensor]:
    """Every pair of corners (in turn with a third), then random numbers, some nearly cancelling."""
    edge = corners(kind)
    a = [x for x in edge for _ in edge]
    b = [x for _ in edge for x in edge]
    c = [edge[(i * 7 + i // 5) % len(edge)] for i in range(len(a))]
    lists = [torch.tensor(v, dtype=torch.float64).to(DTYPES[kind]) for v in (a, b, c)][:count]
    tails = [randoms(kind, 300, seed + i, spread) for i in range(count)]
    if count == 2:
        tails[1][:100] = (-tails[0][:100].double() * 1.001).to(DTYPES[kind])
    if count == 3:
        tails[2][:100] = (-tails[0].double() * tails[1].double())[:100].to(DTYPES[kind])
    return [torch.cat(pair) for pair in zip(lists, tails, strict=True)]


def expect(got: torch.Tensor, reference, *inputs: torch.Tensor, bitwise=False):
    """Each result equals ``reference`` of its operands; NaN equals NaN. ``bitwise``: zeros too."""
    columns = [x.double().tolist() for x in inputs]
    for result, *args in zip(got.double().tolist(), *columns, strict=True):
        want = reference(*args)
        same = result == want or (math.isnan(result) and math.isnan(want))
        if bitwise and not math.isnan(want):
            same = same and math.copysign(1, result) == math.copysign(1, want)
        assert same, f"{[a.hex() for a in args]}: got {result.hex()}, not {want.hex()}"
