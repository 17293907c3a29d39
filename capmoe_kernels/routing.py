"""Who goes where, and who is dropped: :func:`route` and :func:`select`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import INTS, require_inference, require_int, require_number, require_tensor
from ._op_options import gate_options, num_rows_of, select_options
from ._routing_checks import (
    RowLayout,
    check_route,
    check_rows,
    check_tokens,
    require_capacity,
)
from .arrays import accepts_arrays
from .capacity import Capacity
from .gating import Gating
from .ops import run

_DROPLESS = Capacity()


class Routing(NamedTuple):
    """A routing decision: T tokens, E experts, K candidate columns, N rows allocated.

    Expert e owns rows ``expert_offsets[e]`` to ``expert_offsets[e] + tokens_per_expert[e]``, in
    token order. N is a bound the host knows, so nothing waits for the device; rows of no expert are
    padding. A tuple, hence a pytree.
    """

    expert_ids: Tensor
    """[T, K] int32: candidates, best first; E where the column is unused: no such expert, padding,
    or, under rerouting, an expert the token never came to ask for."""
    weights: Tensor
    """[T, K] float32: combine weight; 0 where dropped or unused."""
    rows: Tensor
    """[T, K] int32: row of the packed buffer; -1 where dropped or unused."""
    row_tokens: Tensor
    """[N] int32: token of each packed row; -1 where the row is padding."""
    expert_offsets: Tensor
    """[E + 1] int32: first row of each expert, and the end of the last."""
    tokens_per_expert: Tensor
    """[E] int32: rows kept."""
    demand_per_expert: Tensor
    """[E] int32: pairs asked for by the top-k, before capacity: the straggler numbers."""


@accepts_arrays
def route(
    router_logits: Tensor,
    gating: Gating,
    capacity: Capacity | None = None,
    *,
    token_mask: Tensor | None = None,
    token_priority: Tensor | None = None,
    selection_bias: Tensor | None = None,
    layout: RowLayout = "packed",
    row_alignment: int = 1,
) -> Routing:
    """Choose experts for every token, bound every expert's load, and give each kept pair a row.

    Token Drop, Expanded Drop and Token Reroute of arXiv 2503.05066 (section 4), by ``capacity``.

    Args:
        router_logits: [T, E] float32, bfloat16 or float16, any strides. -inf forbids an expert.
        gating: scores, top-k and weights.
        capacity: None is dropless.
        token_mask: [T] bool, False for padding: not counted, never competing, never written.
        token_priority: [T] int32 or int64: a higher class is kept before a lower one, whatever the
            policy says (the paper's Image-First drop is ``is_text``, Text-First ``is_image``).
        selection_bias: [E] float32, added to the scores for ranking experts only (DeepSeek-V3's
            ``e_score_correction_bias``); weights and drop scores do not see it. -inf forbids an
            expert. Without a bias experts are ranked by their logits, which do not saturate.
        layout: ``"packed"``: an expert's rows follow the previous one's; ``"padded"``: every expert
            owns the same number of rows, so a [N, H] buffer is [E, C, H].
        row_alignment: an expert's first row is a multiple of this.

    Returns:
        Routing with K = min(E, top_k + extra candidates) columns.

    Raises:
        TypeError, ValueError: naming the argument and what it expects. NaN and +inf are looked for
            in CPU tensors in eager mode; elsewhere a NaN logit forbids its expert.
        RuntimeError: an input requires grad.
    """
    capacity = _DROPLESS if capacity is None else capacity
    check_route(router_logits, gating, capacity, token_mask, token_priority, selection_bias)
    check_rows(layout, row_alignment, capacity)
    num_experts = router_logits.shape[1]
    expert_ids, weights, scores = run(
        "gate", router_logits, selection_bias, *gate_options(gating, capacity, num_experts)
    )
    kept_weight_sum = float(gating.scaling) if gating.renormalize == "kept" else None
    return _select(
        expert_ids,
        weights,
        scores,
        token_mask,
        token_priority,
        num_experts,
        gating.top_k,
        capacity,
        kept_weight_sum,
        layout,
        row_alignment,
    )


@accepts_arrays
def select(
    topk_ids: Tensor,
    topk_weights: Tensor,
    num_experts: int,
    capacity: Capacity | None = None,
    *,
    scores: Tensor | None = None,
    token_mask: Tensor | None = None,
    token_priority: Tensor | None = None,
    layout: RowLayout = "packed",
    row_alignment: int = 1,
) -> Routing:
    """:func:`route` for a caller that has its own top-k.

    Args:
        topk_ids: [T, K] int32 or int64, any strides. An id outside [0, E), such as -1, means "not
            routed"; of an expert listed twice for a token, the first counts.
        topk_weights: [T, K] float32: the combine weights of the pairs that are kept.
        num_experts: E.
        capacity: None is dropless. ``expand`` and ``reroute_rounds`` need the logits: use route.
            ``drop_score`` and ``expand_priority`` have nothing to decide here.
        scores: [T, K] float32, what capacity ranks by; ``topk_weights`` where None.
        token_mask, token_priority, layout, row_alignment: see :func:`route`.

    Returns:
        Routing with the K columns of ``topk_ids``.

    Raises:
        TypeError, ValueError, RuntimeError: see :func:`route`.
    """
    capacity = _DROPLESS if capacity is None else capacity
    require_capacity(capacity)
    require_tensor("topk_ids", topk_ids, [None, None], INTS, meaning="T, K")
    shape, device = list(topk_ids.shape), topk_ids.device
    require_tensor("topk_weights", topk_weights, shape, [torch.float32], device, "T, K")
    require_int("num_experts", num_experts, minimum=1, maximum=2**31 - 2)
    scores = topk_weights if scores is None else scores
    require_tensor("scores", scores, shape, [torch.float32], device, "T, K")
    check_tokens(topk_ids, token_mask, token_priority)
    require_inference(topk_weights=topk_weights, scores=scores)
    if capacity.expand != "none" or capacity.reroute_rounds > 1:
        raise ValueError(
            "Capacity.expand and Capacity.reroute_rounds look for experts beyond the top-k, which"
            " select is not given: use route"
        )
    capacity.check_experts(num_experts)
    check_rows(layout, row_alignment, capacity)
    require_number("topk_weights", topk_weights, token_mask)
    require_number("scores", scores, token_mask)
    return _select(
        topk_ids,
        topk_weights,
        scores,
        token_mask,
        token_priority,
        num_experts,
        topk_ids.shape[1],
        capacity,
        None,
        layout,
        row_alignment,
    )


def _select(
    expert_ids: Tensor,
    weights: Tensor,
    scores: Tensor,
    token_mask: Tensor | None,
    token_priority: Tensor | None,
    num_experts: int,
    top_k: int,
    capacity: Capacity,
    kept_weight_sum: float | None,
    layout: str,
    row_alignment: int,
) -> Routing:
    num_tokens, columns = expert_ids.shape
    options = select_options(capacity, num_experts)
    num_rows = num_rows_of(num_tokens, columns, num_experts, top_k, capacity, layout, row_alignment)
    return Routing(
        *run(
            "select",
            expert_ids,
            weights,
            scores,
            token_mask,
            None if token_priority is None else token_priority.long(),
            num_experts,
            top_k,
            *options,
            kept_weight_sum,
            layout,
            row_alignment,
            num_rows,
        )
    )
