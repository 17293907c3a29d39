"""How a token chooses its experts: scores, top-k, and the weights of the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ._checks import require_choice, require_finite, require_int

Scoring = Literal["softmax", "sigmoid"]
Renormalize = Literal["none", "topk", "kept"]
GroupScore = Literal["max", "top2_sum"]


@dataclass(frozen=True)
class Gating:
    """The gate of a Mixture-of-Experts layer (arXiv 2503.05066, equations 1 and 2).

    Attributes:
        top_k: experts a token asks for, 1 to E.
        scoring: ``"softmax"`` over all E experts, or ``"sigmoid"`` of each logit (DeepSeek-V3).
        renormalize: what a kept expert's weight is divided by. ``"none"``: nothing (OLMoE,
            Qwen1.5-MoE, DeepSeek-V2). ``"topk"``: the scores of the token's top-k, dropped ones
            included, so a kept pair weighs what it weighs without capacity (Mixtral, Qwen3,
            DeepSeek-V3); extra candidates are divided by the same sum, so one may weigh far more
            than 1 where a selection bias chose a top-k of tiny scores. ``"kept"``: the scores of
            the experts the token kept, so they sum to one.
        scaling: multiplies every weight (DeepSeek's ``routed_scaling_factor``).
        num_groups: experts are cut into this many contiguous groups of equal size; divides E.
        topk_groups: a token may use only experts of its best ``topk_groups`` groups.
        group_score: a group counts as its best expert (``"max"``, DeepSeek-V2) or as the sum of its
            two best (``"top2_sum"``, DeepSeek-V3).

    Raises:
        TypeError, ValueError: naming the field and what it expects.
    """

    top_k: int
    scoring: Scoring = "softmax"
    renormalize: Renormalize = "none"
    scaling: float = 1.0
    num_groups: int = 1
    topk_groups: int = 1
    group_score: GroupScore = "max"

    def __post_init__(self) -> None:
        require_int("Gating.top_k", self.top_k, minimum=1)
        require_choice("Gating.scoring", self.scoring, get_args(Scoring))
        require_choice("Gating.renormalize", self.renormalize, get_args(Renormalize))
        require_finite("Gating.scaling", self.scaling, above=0.0, most=3e38)
        require_int("Gating.num_groups", self.num_groups, minimum=1)
        require_int("Gating.topk_groups", self.topk_groups, minimum=1, maximum=self.num_groups)
        require_choice("Gating.group_score", self.group_score, get_args(GroupScore))

    def check_experts(self, num_experts: int) -> None:
        """Raise ValueError where this gate cannot choose among ``num_experts`` experts."""
        if num_experts < 1:
            raise ValueError("router_logits must have at least one expert, got 0 columns")
        if num_experts % self.num_groups:
            raise ValueError(
                f"Gating.num_groups must divide the number of experts, got {self.num_groups} groups"
                f" for {num_experts} experts"
            )
        usable = num_experts // self.num_groups * self.topk_groups
        if self.top_k > usable:
            raise ValueError(
                f"Gating.top_k must be at most {usable}, the experts a token can reach"
                f" ({num_experts} experts, {self.topk_groups} of {self.num_groups} groups),"
                f" got {self.top_k}"
            )
