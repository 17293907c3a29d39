"""The experts on their rows: two launches of one grouped product."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .grouped_gemm import grouped_gemm_kernel
from .tiles import Tile
from .tuning import Shape, choose_tile

_TOGETHER = 16  # row blocks that take the same weights one after the other, and stay in L2


def grouped_mlp(
    x: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    expert_offsets: Tensor,
    tokens_per_expert: Tensor,
    row_tokens: Tensor | None,
    activation: str,
    layout: str,
) -> Tensor:
    """See the op table in ops.py. Rows of no expert are neither read nor written."""
    _, hidden, intermediate = down_proj.shape
    rows = x.shape[0] if row_tokens is None else row_tokens.shape[0]
    hidden_rows, y = x.new_empty(rows, intermediate), x.new_empty(rows, hidden)
    if rows == 0:
        return y
    groups = (_dense(expert_offsets), _dense(tokens_per_expert))
    plain = activation.removesuffix("_no_mul")
    gating = layout if plain == activation else "none"
    up = (_dense(gate_up_proj), _dense(gate_up_bias), *groups, hidden_rows, gating, plain)
    _Product(_dense(x), _dense(row_tokens), *up).run()
    down = (_dense(down_proj), _dense(down_bias), *groups, y, "none", "none")
    _Product(hidden_rows, None, *down).run()
    return y


def _dense(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


class _Product(NamedTuple):
    """One launch: see grouped_gemm_kernel."""

    x: Tensor
    row_tokens: Tensor | None
    weights: Tensor
    bias: Tensor | None
    expert_offsets: Tensor
    tokens_per_expert: Tensor
    out: Tensor
    gating: str
    activation: str

    def run(self) -> None:
        (rows, columns), (num_experts, _, depth) = self.out.shape, self.weights.shape
        up = "plain" if self.gating == "none" else "gated"
        kind = "down" if self.activation == "none" else up
        rows_per_expert = rows // min(rows, num_experts)
        shape = Shape(self.x.dtype, kind, columns, depth, rows_per_expert)
        tile = choose_tile(shape, self.fastest)
        grouped_gemm_kernel[self.grid](
            *self.arguments(), **self.constants(tile), num_warps=tile.warps, num_stages=tile.stages
        )

    def arguments(self) -> tuple[Any, ...]:
        (rows, columns), (num_experts, _, depth) = self.out.shape, self.weights.shape
        sizes = (self.x.shape[0], rows, num_experts, depth, columns)
        padded_experts = triton.next_power_of_2(num_experts)
        tensor_cores = self.x.dtype != torch.float32
        constants = (self.gating, self.activation, padded_experts, tensor_cores, _TOGETHER)
        return (*self[:7], *sizes, *constants)

    def constants(self, tile: Tile) -> dict[str, Any]:
        """What depends on the tile."""
        return {
            "whole_depth": self.weights.shape[2] % tile.depth == 0,
            "whole_columns": self.out.shape[1] % tile.columns == 0,
            "block_rows": tile.rows,
            "block_columns": tile.columns,
            "block_depth": tile.depth,
        }

    def grid(self, constants: dict[str, Any]) -> tuple[int]:
        """No more programs than there can be blocks: of each expert the last may be a part."""
        rows, columns = self.out.shape
        row_blocks = rows // constants["block_rows"] + min(rows, self.weights.shape[0])
        return (row_blocks * triton.cdiv(columns, constants["block_columns"]),)

    def fastest(self, tiles: list[Tile]) -> Tile:
        """By Triton's autotuner."""
        configs = [
            triton.Config(self.constants(tile), num_warps=tile.warps, num_stages=tile.stages)
            for tile in tiles
        ]
        tuner = triton.autotune(configs, key=[])(grouped_gemm_kernel)
        tuner[self.grid](*self.arguments())
        return tiles[configs.index(tuner.best_config)]
