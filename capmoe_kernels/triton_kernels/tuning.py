"""Tiles that were measured on a user's own device, kept in a file that can be shipped.

``CAPMOE_TRITON_TILES=tiles.json`` names the file: such a tile goes before the tables of tiles.py.
With ``CAPMOE_TRITON_AUTOTUNE=1`` a product of a shape class that the file does not have is timed
with each candidate when it is first called, and the best is added to the file (without a file, it
is kept for this process). Timing waits for the device: run every shape once before capturing a
CUDA graph. The file is one object, from class to tile:

    {"sm_90 bfloat16 gated 1024x2048 rows 64": [64, 128, 64, 8, 3]}

The class is architecture, dtype, product (gated or plain, the two kinds of up, or down), columns x
depth of an expert's product, and rows per expert, rounded up to a power of two from 16 to 256; the
tile is tiles.Tile.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from .tiles import Tile, current_arch, known_tile, table_of


class Shape:
    """What a tile is chosen by."""

    def __init__(
        self, dtype: torch.dtype, kind: str, columns: int, depth: int, rows_per_expert: int
    ):
        self.arch, self.dtype, self.kind = current_arch(), dtype, kind
        self.rows_per_expert = rows_per_expert
        rows = min(max(triton.next_power_of_2(rows_per_expert), 16), 256)
        name = str(dtype).removeprefix("torch.")
        self.name = f"{self.arch} {name} {kind} {columns}x{depth} rows {rows}"


def choose_tile(shape: Shape, fastest: Callable[[list[Tile]], Tile]) -> Tile:
    """A measured tile where there is one, else the table's; ``fastest`` measures."""
    measured = _measured(_path())
    found = measured.get(shape.name)
    if found is not None:
        return found
    if os.environ.get("CAPMOE_TRITON_AUTOTUNE", "0") != "1":
        return known_tile(shape.arch, shape.dtype, shape.kind, shape.rows_per_expert)
    measured[shape.name] = fastest(candidates(shape))
    _save(_path(), shape.name, measured[shape.name])
    return measured[shape.name]


def candidates(shape: Shape) -> list[Tile]:
    """The tables' tiles of this dtype, with neighbours in columns, depth and stages."""
    tables = table_of(shape.arch, shape.dtype).values()
    found = {}
    for tile in (pair[1 if shape.kind == "down" else 0] for pair in tables):
        for columns in (tile.columns // 2, tile.columns):
            for depth in (tile.depth // 2, tile.depth):
                for stages in (tile.stages - 1, tile.stages, tile.stages + 1):
                    wanted = tile._replace(columns=columns, depth=depth, stages=stages)
                    found[wanted] = depth >= 16
    return [tile for tile, possible in found.items() if possible]


def _path() -> str:
    return os.environ.get("CAPMOE_TRITON_TILES", "")


@functools.cache
def _measured(path: str) -> dict[str, Tile]:
    return {name: Tile(*numbers) for name, numbers in _read(path).items()}


def _read(path: str) -> dict[str, list[int]]:
    if not path or not Path(path).exists():
        return {}
    content: dict[str, list[int]] = json.loads(Path(path).read_text())
    return content


def _save(path: str, name: str, tile: Tile) -> None:
    """Add a tile; what others have written meanwhile stays."""
    if not path:
        return
    content = _read(path) | {name: list(tile)}
    lines = ",\n".join(f"  {json.dumps(key)}: {content[key]}" for key in sorted(content))
    part = Path(f"{path}.{os.getpid()}")
    part.write_text(f"{{\n{lines}\n}}\n")
    part.replace(path)
