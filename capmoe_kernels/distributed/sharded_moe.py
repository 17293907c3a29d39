"""The layer on sharded experts: every rank computes its slice of every expert for all tokens."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import require_int
from .._layer_checks import check_tensors
from ..capacity import Capacity
from ..experts import Experts
from ..gating import Gating
from ..layer import _grouped_mlp
from ..ops import run
from ..routing import Routing, route, select
from .shard_peers import Peers
from .shard_terms import ShardTerms
from .terms import numbers


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
        router_logits: [T, E], of all E experts. A NaN forbids its expert, as everywhere but in
            :func:`capmoe_kernels.route` on a CPU, where it would keep one rank from coming.
        shard: of :func:`~capmoe_kernels.distributed.shard_experts.shard_experts`, for this rank in
            ``group`` and the group's size.
        gating, capacity: the same on every rank.
        group: NCCL for CUDA tensors, gloo for the CPU's; None is the default group. All calls in a
            group are collective: every rank makes the same ones, in the same order.
        max_tokens: what every rank's tokens are padded to, the same on every rank and at least
            each one's T. None: the largest T, for which the ranks exchange their sizes and the
            host waits. They compare the rest of their arguments, too: then in every call, and
            where ``max_tokens`` is given in the first that has these, by way of the group's store.
        token_mask, token_priority, selection_bias: of this rank, see :func:`capmoe_kernels.route`.

    Returns:
        [T, H] of the same dtype. Each rank's part of an expert's output is rounded to that dtype,
        sums are float32, and what they come to is rounded again.

    Raises:
        TypeError, ValueError: naming the argument and what it expects; the other ranks get a
            RankError. Where arguments differ between ranks, a ValueError of every rank.
        RankError: another rank died, stalled, raised, or was not called alike, within the group's
            timeout: ``.ranks`` and ``.phase``, which is ``"agreement"``, ``"sizes"``, ``"gather"``
            or ``"reduce-scatter"``. The group is of no more use. With NCCL, of the agreement only.
        RuntimeError: an input requires grad.
    """
    peers = Peers(group)
    with peers.guard():
        _check(hidden_states, router_logits, shard, peers.rank)
        own = route(
            numbers(router_logits),
            gating,
            capacity,
            token_mask=token_mask,
            token_priority=token_priority,
            selection_bias=selection_bias,
        )
        size = _agreed_size(
            hidden_states, shard, ShardTerms.of(shard, gating, own, max_tokens), peers
        )
        if size == 0:
            return torch.empty_like(hidden_states)
        tokens = peers.gather(_padded(hidden_states, size, 0))
        routing = _routing_of_all(own, size, shard.num_experts, peers)
        rows = _grouped_mlp(tokens, shard, routing, routing.row_tokens)
        partial: Tensor = run("combine", rows.float(), routing.rows, routing.weights)
        out = peers.reduce_scatter(partial)
        return out[: hidden_states.shape[0]].to(hidden_states.dtype)


def _check(hidden_states: Tensor, router_logits: Tensor, shard: Experts, rank: int) -> None:
    check_tensors(hidden_states, router_logits, shard, "shard")
    if shard.down_bias is not None and rank != 0:
        raise ValueError(
            f"shard must have no down_bias on rank {rank}: only rank 0's shard_experts adds it"
        )


def _agreed_size(hidden_states: Tensor, shard: Experts, terms: ShardTerms, peers: Peers) -> int:
    """What every rank's tokens are padded to; ValueError where the ranks were not called alike.

    Unlike calls would let the gathers hang, or mix up what they carry.
    """
    num_tokens, neurons = hidden_states.shape[0], shard.intermediate_size
    if terms.max_tokens is None:
        return peers.largest(num_tokens, terms, neurons, hidden_states.device)
    require_int("max_tokens", terms.max_tokens, minimum=num_tokens)
    peers.agree(terms, neurons)
    return terms.max_tokens


def _routing_of_all(own: Routing, size: int, num_experts: int, peers: Peers) -> Routing:
    """Rows for the pairs that every rank kept. The choices travel, so no rank repeats a gate.

    A dropped pair and a padding token ask for expert E, which is none.
    """
    ids = own.expert_ids.masked_fill(own.rows < 0, num_experts)
    choices = torch.cat([ids, own.weights.view(torch.int32)], dim=1)
    ids, bits = peers.gather(_padded(choices, size, num_experts)).chunk(2, dim=1)
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
