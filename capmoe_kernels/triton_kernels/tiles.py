"""Which tile a grouped product is cut into: by architecture, dtype and rows per expert.

No choice of the tables spills a register on its architecture; test_triton_compile.py looks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton


class Tile(NamedTuple):
    """A program computes ``rows`` x ``columns`` outputs, ``depth`` of k at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# From what number of rows per expert on: the tile of the up product, which has two sums for each
# output where it is gated, and an activation; and the tile of the down product.
Table = dict[int, tuple[Tile, Tile]]

TABLES: dict[str, Table] = {
    # Two sums of 128 columns on 8 warps would spill here.
    "sm_80": {
        0: (Tile(16, 64, 128, 4, 3), Tile(16, 64, 128, 4, 4)),
        17: (Tile(64, 64, 64, 4, 3), Tile(64, 128, 64, 4, 3)),
        65: (Tile(128, 64, 32, 8, 4), Tile(128, 128, 32, 4, 4)),
    },
    # Only 64 rows and more go to wgmma.
    "sm_90": {
        0: (Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)),
        17: (Tile(64, 128, 64, 8, 3), Tile(64, 128, 64, 4, 4)),
        65: (Tile(128, 128, 64, 8, 3), Tile(128, 256, 64, 8, 3)),
    },
    "sm_100": {
        0: (Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)),
        17: (Tile(64, 128, 64, 8, 3), Tile(64, 128, 64, 4, 4)),
        65: (Tile(128, 64, 64, 4, 3), Tile(128, 256, 64, 8, 3)),
    },
    # 64 KiB of shared memory.
    "hip": {
        0: (Tile(16, 64, 64, 4, 2), Tile(16, 64, 64, 4, 2)),
        17: (Tile(64, 64, 64, 4, 2), Tile(64, 128, 64, 4, 2)),
        65: (Tile(128, 64, 32, 4, 2), Tile(128, 128, 64, 8, 2)),
    },
}
# A lane keeps its factors for a whole step of k in registers, hence the short steps.
FLOAT32: Table = {
    0: (Tile(16, 32, 16, 4, 3), Tile(16, 64, 16, 4, 3)),
    17: (Tile(64, 64, 16, 8, 3), Tile(64, 64, 16, 4, 3)),
}


def current_arch() -> str:
    """The current device's, such as ``sm_90`` or ``gfx942``."""
    arch = triton.runtime.driver.active.get_current_target().arch
    return f"sm_{arch}" if isinstance(arch, int) else str(arch)


def table_of(arch: str, dtype: torch.dtype) -> Table:
    """The tiles for an architecture; one that is not in the tables has an older one's."""
    if dtype == torch.float32:
        return FLOAT32
    if not arch.startswith("sm_"):
        return TABLES["hip"]
    # sm_12x has tensor cores and shared memory like sm_8x.
    return TABLES.get(f"sm_{int(arch[3:]) // 10 * 10}", TABLES["sm_80"])


def known_tile(arch: str, dtype: torch.dtype, kind: str, rows_per_expert: int) -> Tile:
    """The table's tile for an expected number of rows. ``kind``: gated, plain (up), or down."""
    table = table_of(arch, dtype)
    up, down = table[max(start for start in table if start <= rows_per_expert)]
    return down if kind == "down" else up
