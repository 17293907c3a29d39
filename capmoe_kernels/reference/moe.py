"""The whole layer: the other ops, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .combine import combine
from .gate import gate
from .grouped_mlp import grouped_mlp
from .select import select


def layer_of(
    gate: Callable[..., tuple[Tensor, ...]],
    select: Callable[..., tuple[Tensor, ...]],
    grouped_mlp: Callable[..., Tensor],
    combine: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """The moe of a backend whose layer is its other ops, one after the other."""

    def moe(
        hidden_states: Tensor,
        router_logits: Tensor,
        selection_bias: Tensor | None,
        top_k: int,
        scoring: str,
        renormalize: str,
        scaling: float,
        num_groups: int,
        topk_groups: int,
        group_score: str,
        drop_score: str,
        expand: str,
        extra: int,
        local_start: int,
        local_stop: int,
        token_mask: Tensor | None,
        token_priority: Tensor | None,
        factor: Sequence[int] | None,
        limit: int | None,
        rounding: str,
        policy: str,
        expand_priority: str,
        max_experts_per_token: int | None,
        reroute_rounds: int,
        experts_per_budget: int,
        seed: int,
        num_rows: int,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        gate_up_bias: Tensor | None,
        down_bias: Tensor | None,
        activation: str,
        layout: str,
    ) -> Tensor:
        """See the op table in ops.py."""
        ids, weights, scores = gate(
            router_logits,
            selection_bias,
            top_k,
            scoring,
            renormalize,
            scaling,
            num_groups,
            topk_groups,
            group_score,
            drop_score,
            expand,
            extra,
            local_start,
            local_stop,
        )
        _, weights, rows, row_tokens, expert_offsets, tokens_per_expert, _ = select(
            ids,
            weights,
            scores,
            token_mask,
            token_priority,
            router_logits.shape[1],
            top_k,
            factor,
            limit,
            rounding,
            policy,
            expand_priority,
            max_experts_per_token,
            reroute_rounds,
            experts_per_budget,
            seed,
            scaling if renormalize == "kept" else None,
            "packed",
            1,
            num_rows,
        )
        y = grouped_mlp(
            hidden_states,
            gate_up_proj,
            down_proj,
            gate_up_bias,
            down_bias,
            expert_offsets,
            tokens_per_expert,
            row_tokens,
            activation,
            layout,
        )
        return combine(y, rows, weights)

    return moe


moe = layer_of(gate, select, grouped_mlp, combine)
