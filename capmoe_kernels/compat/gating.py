"""The arguments of vLLM's routers as a Gating."""

from __future__ import annotations

from typing import NamedTuple

from .._checks import require_choice
from ..gating import Gating


class Grouping(NamedTuple):
    use_grouped_topk: bool
    num_expert_group: int | None
    topk_group: int | None


def make_gating(
    topk: int,
    renormalize: bool,
    grouping: Grouping,
    scoring_func: str,
    has_bias: bool,
    routed_scaling_factor: float,
) -> Gating:
    """vLLM's routing arguments as a Gating; errors name the former where the two differ."""
    require_choice("scoring_func", scoring_func, ("softmax", "sigmoid"))
    groups, best = grouping.num_expert_group, grouping.topk_group
    if grouping.use_grouped_topk and (groups is None or best is None):
        raise ValueError(
            "num_expert_group and topk_group must be given for use_grouped_topk,"
            f" got {groups} and {best}"
        )
    if not grouping.use_grouped_topk and not (groups in (None, 0, 1) and best in (None, 0, 1)):
        raise ValueError(
            "num_expert_group and topk_group go with use_grouped_topk=True,"
            f" got {groups} and {best} without it"
        )
    return Gating(
        top_k=topk,
        scoring="sigmoid" if scoring_func == "sigmoid" else "softmax",
        renormalize="topk" if renormalize else "none",
        scaling=routed_scaling_factor,
        num_groups=groups if grouping.use_grouped_topk and groups else 1,
        topk_groups=best if grouping.use_grouped_topk and best else 1,
        group_score="top2_sum" if has_bias else "max",
    )
