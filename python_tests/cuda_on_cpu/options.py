"""What a launch may be asked for beside its grid, its blocks and its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .structs import Buffer

# True: the same bits in every tensor, NaNs aside. A number: how far floats may be apart, relative
# and absolute, and at least two units in the last place. False: not compared. A dict: by argument.
Agreement = bool | float | dict[int, bool | float]


@dataclass(frozen=True)
class Options:
    """How a kernel is run.

    Attributes:
        seed: 0 runs warps and blocks in order, others interleave them at random.
        resident: blocks in flight.
        max_steps: warp instructions before a launch counts as hung.
        cluster: blocks that are resident together, in x, y, z.
        cooperative: all blocks are, and ``grid.sync()`` works.
        buffers: memory that the kernel may touch beside its tensors.
        on_gpu: how the result must agree with a GPU's, where there is one (see gpu.py).
    """

    seed: int = 0
    resident: int = 16
    max_steps: int = 200_000_000
    cluster: int | tuple[int, ...] | None = None
    cooperative: bool = False
    buffers: Sequence[Buffer] = ()
    on_gpu: Agreement = True
