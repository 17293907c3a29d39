"""The layer on sharded experts: every rank computes its slice of every expert for all tokens."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import FLOATS, require_inference, require_int, require_tensor
from .._layer_checks import expert_tensors
from ..capacity import Capacity
from ..experts import Experts
from ..gating import Gating
from ..layer import _grouped_mlp
from ..ops import run
from ..routing import Routing, route, select


def sharded_moe(
    hidden_states: Tensor,
    router_logits: Tensor,
    shard: Experts,
    gating: Gating,
    capacity: Capacity | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    max_tokens: int | None = None,
    token_mask: Tensor | None = None,
    token_priority: Tensor | None = None,
    selection_bias: Tensor | None = None,
) -> Tensor:
    """A Mixture-of-Experts layer without stragglers: all ranks do the same work for any routing.

    Every rank of ``group`` calls it with its own tokens, which may be fewer than the others', or
    none. A rank routes its own tokens; tokens and choices are gathered; every rank runs its shard
    of each expert on all of them; the weighted sums are added up in float32 and each rank gets its
    tokens'. Nothing needs to be dropped for balance. Where ``capacity`` drops, it does so among a
    rank's own tokens, as in expert parallelism.

    Args:
        hidden_states: [T, H] of the shard's dtype.
        router_logits: [T, E], of all E experts.
        shard: this rank's :func:`shard_experts`, for its rank in ``group`` and the group's size.
        gating, capacity: the same on every rank.
        group: None is the default group.
        max_tokens: what every rank's tokens are padded to, the same on every rank and at least
            each one's T. None: the largest T, for which the ranks exchange their sizes and the
            host waits; they then also find out whether they were called alike.
        token_mask, token_priority, selection_bias: of this rank, see :func:`capmoe_kernels.route`.

    Returns:
        [T, H] of the same dtype. Each rank's part of an expert's output is rounded to that dtype,
        sums are float32, and what they come to is rounded again.

    Raises:
        TypeError, ValueError: naming the argument and what it expects, or the rank that was called
            with other sizes. An error on one rank leaves the others waiting for the group's
            timeout.
        RuntimeError: an input requires grad.
    """
    _check(hidden_states, router_logits, shard, group)
    own = route(
        router_logits,
        gating,
        capacity,
        token_mask=token_mask,
        token_priority=token_priority,
        selection_bias=selection_bias,
    )
    num_tokens = hidden_states.shape[0]
    if max_tokens is None:
        max_tokens = _agree(hidden_states, shard.num_experts, own, group)
    require_int("max_tokens", max_tokens, minimum=num_tokens)
    if max_tokens == 0:
        return torch.empty_like(hidden_states)
    tokens = _gather(_padded(hidden_states, max_tokens, 0), group)
    routing = _routing_of_all(own, max_tokens, shard.num_experts, group)
    rows = _grouped_mlp(tokens, shard, routing, routing.row_tokens)
    partial: Tensor = run("combine", rows.float(), routing.rows, routing.weights)
    out = partial.new_empty(max_tokens, partial.shape[1])
    dist.reduce_scatter_single(out, partial, group=group)
    return out[:num_tokens].to(hidden_states.dtype)


def _check(
    hidden_states: Tensor,
    router_logits: Tensor,
    shard: Experts,
    group: dist.ProcessGroup | None,
) -> None:
    if not isinstance(shard, Experts):
        raise TypeError(f"shard must be capmoe_kernels.Experts, got {type(shard).__name__}")
    num_tokens = hidden_states.shape[0] if isinstance(hidden_states, Tensor) else None
    dtype, device = shard.down_proj.dtype, shard.down_proj.device
    hidden = [num_tokens, shard.hidden_size]
    require_tensor("hidden_states", hidden_states, hidden, [dtype], device, "T, H")
    logits = [num_tokens, shard.num_experts]
    require_tensor("router_logits", router_logits, logits, FLOATS, device, "T, E")
    require_inference(hidden_states=hidden_states, **expert_tensors(shard))
    rank = dist.get_rank(group)
    if shard.down_bias is not None and rank != 0:
        raise ValueError(
            f"shard must have no down_bias on rank {rank}: only rank 0's shard_experts adds it"
        )


def _agree(
    hidden_states: Tensor, num_experts: int, own: Routing, group: dist.ProcessGroup | None
) -> int:
    """The largest T of the group; ValueError where the ranks' other sizes differ.

    Other sizes would let the gathers hang, or mix up what they carry.
    """
    num_tokens, hidden = hidden_states.shape
    alike = hidden, hidden_states.element_size(), num_experts, own.expert_ids.shape[1]
    mine = torch.tensor([[num_tokens, *alike]], device=hidden_states.device)
    everyone = _gather(mine, group).tolist()
    for rank, (_, *other) in enumerate(everyone):
        if other != everyone[0][1:]:
            raise ValueError(
                "sharded_moe must be called alike on every rank: [hidden size, bytes of a number,"
                f" experts, candidates] are {other} on rank {rank}, {everyone[0][1:]} on rank 0"
            )
    return int(max(tokens for tokens, *_ in everyone))


def _routing_of_all(
    own: Routing, max_tokens: int, num_experts: int, group: dist.ProcessGroup | None
) -> Routing:
    """Rows for the pairs that every rank kept. The choices travel, so no rank repeats a gate.

    A dropped pair and a padding token ask for expert E, which is none.
    """
    ids = own.expert_ids.masked_fill(own.rows < 0, num_experts)
    choices = torch.cat([ids, own.weights.view(torch.int32)], dim=1)
    ids, bits = _gather(_padded(choices, max_tokens, num_experts), group).chunk(2, dim=1)
    # A padding token's weights are E read as floats: numbers, which nothing uses.
    weights = bits.contiguous().view(torch.float32)
    return select(ids, weights, num_experts)


def _padded(rows: Tensor, size: int, value: int) -> Tensor:
    """[size, ...], dense, with rows of ``value`` at its end."""
    if rows.shape[0] == size:
        return rows.contiguous()
    padded = rows.new_full((size, rows.shape[1]), value)
    padded[: rows.shape[0]] = rows
    return padded


def _gather(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All ranks' rows, which are equally many, in the order of the ranks."""
    everyone = rows.new_empty(dist.get_world_size(group) * rows.shape[0], rows.shape[1])
    dist.all_gather_single(everyone, rows, group=group)
    return everyone
