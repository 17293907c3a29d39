"""select in one launch: capacity, and a row for every kept pair. Meaning: reference/select.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..bounds import host_capacity
from .select_kernel import select_kernel, work_words

_MIN_TOKENS = 32  # of a program
_MAX_PAIRS = 2**30  # places of pairs are 32-bit integers
_MASK = 0xFFFFFFFF


def select(
    topk_ids: Tensor,
    weights: Tensor,
    scores: Tensor,
    token_mask: Tensor | None,
    token_priority: Tensor | None,
    num_experts: int,
    top_k: int,
    factor: Sequence[int] | None,
    limit: int | None,
    rounding: str,
    policy: str,
    expand_priority: str,
    max_experts_per_token: int | None,
    reroute_rounds: int,
    experts_per_budget: int,
    seed: int,
    kept_weight_sum: float | None,
    layout: str,
    row_alignment: int,
    num_rows: int,
) -> tuple[Tensor, ...]:
    """See the op table in ops.py."""
    tokens, columns = topk_ids.shape
    padded_rows = num_rows // num_experts if layout == "padded" else 0
    if tokens * columns >= _MAX_PAIRS:
        raise ValueError(f"select takes fewer than 2**30 pairs on Triton, got {tokens * columns}")
    out = _outputs(topk_ids, num_experts, num_rows)
    if tokens * columns == 0:
        return _of_nothing(out, padded_rows)

    bound = host_capacity(tokens, num_experts, top_k, factor, limit, rounding)
    bounded = bound < tokens
    limited = max_experts_per_token is not None and max_experts_per_token < columns
    sharing = experts_per_budget > 1
    reroutes = reroute_rounds > 1
    state = "reroute" if reroutes else "asked" if limited or (bounded and sharing) else "none"
    numerator, denominator = (0, 1) if factor is None else factor
    numerator, denominator = numerator * top_k, denominator * num_experts
    kind = {
        "policy": policy if bounded else "score",
        "by_factor": factor is not None and limit is None,
        "bounded": bounded,
        "state": state,
        "limited": limited,
        "tops": top_k < columns or (state != "none" and not bounded),
        "topk_first": bounded and expand_priority == "topk_first" and top_k < columns,
        "sharing": bounded and sharing,
        "padded": layout == "padded",
        "rescale": kept_weight_sum is not None,
    }
    launch = _launch(tokens * columns, num_experts)
    blocks = launch.blocks(columns, num_experts)
    budgets = num_experts // experts_per_budget if bounded else 0
    programs, groups, span = launch.grid(tokens, budgets, blocks["block_t"])
    cell = tl.int8 if columns <= 127 else tl.int32
    cell_bytes = blocks["block_t"] * blocks["block_e"] * cell.primitive_bitwidth // 8
    listed = tokens * columns if bounded else 0
    words = work_words(listed, num_experts, groups, cell_bytes)
    work = topk_ids.new_empty(words, dtype=torch.int64)
    select_kernel[(programs,)](
        topk_ids.contiguous(),
        weights.contiguous(),
        scores.contiguous(),
        None if token_mask is None else token_mask.contiguous().view(torch.uint8),
        None if token_priority is None or not bounded else token_priority.contiguous(),
        *out,
        work,
        tokens,
        columns,
        num_experts,
        top_k,
        num_rows,
        span,
        groups,
        bound,
        numerator,
        denominator - 1 if rounding == "ceil" else 0,
        denominator,
        experts_per_budget,
        min(max_experts_per_token or columns, columns),
        _hash_start(seed),
        padded_rows,
        row_alignment,
        reroute_rounds,
        0.0 if kept_weight_sum is None else kept_weight_sum,
        **kind,
        cell=cell,
        **blocks,
        **launch.options(programs),
    )
    return out


def _outputs(topk_ids: Tensor, num_experts: int, num_rows: int) -> tuple[Tensor, ...]:
    def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return topk_ids.new_empty(shape, dtype=dtype)

    pairs = tuple(topk_ids.shape)
    weights = new(*pairs, dtype=torch.float32)
    counts = (new(num_experts + 1), new(num_experts), new(num_experts))
    return (new(*pairs), weights, new(*pairs), new(num_rows), *counts)


def _of_nothing(out: tuple[Tensor, ...], padded_rows: int) -> tuple[Tensor, ...]:
    *pairs, row_tokens, offsets, counts, demand = out
    ends = torch.arange(offsets.shape[0], dtype=torch.int32, device=offsets.device)
    return (*pairs, row_tokens.fill_(-1), ends * padded_rows, counts.zero_(), demand.zero_())


class _Launch(NamedTuple):
    """How the work is cut up: pairs per expert decide, so that few calls differ."""

    warps: int
    programs_per_multiprocessor: int  # all of a launch are resident at once
    tile: int  # cells of a table of experts and tokens
    listed: int  # pairs of a budget that are held in registers

    def blocks(self, columns: int, num_experts: int) -> dict[str, int]:
        """Sides of the tiles."""
        block_k = triton.next_power_of_2(columns)
        block_e = max(8 * self.warps, min(triton.next_power_of_2(num_experts), 128))
        return {
            "block_t": max(1, min(128, self.tile // max(block_k, block_e))),
            "block_k": block_k,
            "block_e": block_e,
            "block_g": max(1, self.tile // block_e),
            "block_l": self.listed,
        }

    def options(self, programs: int) -> dict[str, int]:
        """How Triton compiles and starts the kernel."""
        options = {"num_warps": self.warps, "launch_cooperative_grid": programs > 1}
        if triton.runtime.driver.active.get_current_target().backend == "cuda":
            options["maxnreg"] = 255  # else ptxas spills some to leave room for more programs
        return options

    def grid(self, tokens: int, budgets: int, block_t: int) -> tuple[int, int, int]:
        """Programs, how many of them have tokens, and of these how many each."""
        driver = triton.runtime.driver.active
        device = driver.utils.get_device_properties(driver.get_current_device())
        most = device["multiprocessor_count"] * self.programs_per_multiprocessor
        span = triton.cdiv(max(triton.cdiv(tokens, most), _MIN_TOKENS), block_t) * block_t
        groups = triton.cdiv(tokens, span)
        return max(groups, min(budgets, most)), groups, span


# One warp needs no barrier to add up; four share what would be long for one.
_LAUNCHES = {
    64: _Launch(warps=1, programs_per_multiprocessor=2, tile=512, listed=128),
    512: _Launch(warps=1, programs_per_multiprocessor=2, tile=512, listed=512),
    _MAX_PAIRS: _Launch(warps=4, programs_per_multiprocessor=1, tile=2048, listed=1024),
}


def _launch(pairs: int, num_experts: int) -> _Launch:
    """By how many pairs an expert is asked for on average."""
    return next(launch for most, launch in _LAUNCHES.items() if pairs <= most * num_experts)


def _hash_start(seed: int) -> int:
    """What the hash of every pair begins with, as a signed 32-bit integer."""
    start = _mix(_mix(seed & _MASK) ^ (seed >> 32))
    return start - 2**32 if start >= 2**31 else start


def _mix(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
