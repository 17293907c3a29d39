"""Whether an answer is right, before anyone times it."""

from __future__ import annotations

import torch
from torch import Tensor

OURS_OVER_LOOP, OTHERS_OVER_LOOP = 2, 10  # an error this many times the loop's is wrong
_LOOP_OVER_EPS = 16  # and the loop's own may be this many units of its type
_FLOAT32_NOISE = 1e-6  # what the order of a sum of 2048 products may do


class Judge:
    """Answers against float64 in the first rows, and against the loop in all of them.

    Args:
        loop_out: [T, H], the loop's answer.
        expected: [n, H] float64, the first n rows.

    Raises:
        RuntimeError: the loop itself is wrong.
    """

    def __init__(self, loop_out: Tensor, expected: Tensor) -> None:
        self.expected, self.loop_out = expected, loop_out
        self.eps = torch.finfo(loop_out.dtype).eps
        self.loop_error = row_error(loop_out[: len(expected)], expected)
        if not self.loop_error <= _LOOP_OVER_EPS * self.eps:
            raise RuntimeError(f"the loop itself is wrong: {self.loop_error:.2g}")

    def error(self, out: Tensor) -> float:
        """The largest relative error of the first rows."""
        return row_error(out[: len(self.expected)], self.expected)

    def complaint(self, out: Tensor, factor: int) -> str | None:
        """Why ``out`` is wrong, None if it is right: errors of ``factor`` times the loop's are."""
        if out.shape != self.loop_out.shape:
            return f"shape {list(out.shape)}, not {list(self.loop_out.shape)}"
        loop = max(self.loop_error, self.eps / 2, _FLOAT32_NOISE)
        error = self.error(out)
        if not error <= factor * loop:
            return f"error {error:.1e}, the loop's {self.loop_error:.1e}"
        apart = row_error(out, self.loop_out)
        if not apart <= (factor + 2) * loop:
            return f"{apart:.1e} off the loop in some row"
        return None


def row_error(out: Tensor, expected: Tensor) -> float:
    """The largest relative error of a row; NaN stays NaN."""
    out, expected = out.double(), expected.double()
    size = expected.norm(dim=1).clamp_min(1e-30)  # of a token without experts 0
    return float(((out - expected).norm(dim=1) / size).max())
