"""How an expert's load is bounded: which bound, and who stays when more ask than fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ._checks import require_choice, require_int, require_range
from .bounds import Rounding, exact_factor

Policy = Literal["score", "keep_first", "keep_last", "random"]
DropScore = Literal["prob", "weight"]
Expand = Literal["none", "local", "rank"]
ExpandPriority = Literal["score", "topk_first"]
Scope = Literal["expert", "device"]

_MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class Capacity:
    """How the load of every expert is bounded (arXiv 2503.05066, section 4).

    The default bounds nothing.

    Attributes:
        factor: capacity factor; C is :func:`expert_capacity` of the real tokens of the call.
            None or inf: dropless. 0, or at least 1e-6.
        limit: an explicit C >= 0 instead of ``factor``.
        rounding: of ``factor``'s C, ``"ceil"`` or ``"floor"``.
        policy: which tokens an expert keeps. ``"score"``: the best (the paper's Score);
            ``"keep_first"`` and ``"keep_last"``: by position (Order, Reverse Order); ``"random"``:
            by a hash of (seed, token, expert), the same on every backend.
        drop_score: what ``"score"`` ranks: ``"prob"``, the gate's score, or ``"weight"``, that
            score over the sum of the token's top-k (Megatron-Core's ranking). They are the same
            for ``renormalize="none"``. ``select`` ranks the scores it is given.
        expand: Expanded Drop's extra candidates. ``"local"``: every expert of ``local_experts``;
            ``"rank"``: the token's next ``extra`` best.
        local_experts: (start, stop), the experts on the token's own device; for ``"local"``.
        extra: for ``"rank"``.
        expand_priority: ``"score"``: extra candidates compete as equals (the paper's code);
            ``"topk_first"``: a top-k candidate outranks an extra one, so none is displaced.
        max_experts_per_token: of the experts it kept, a token uses this many best ones.
        reroute_rounds: with R > 1, a refused token asks for its next best expert, R - 1 times
            (Token Reroute). All who ask and all who hold compete; a refusal is final.
        scope: ``"expert"``: C per expert; ``"device"``: ``experts_per_device * C`` per device.
        experts_per_device: for ``scope="device"``; divides E.
        seed: of ``"random"``, 0 to 2**63 - 1. Use another one in each layer.

    Ties go to the lower token, and within a device's budget then to the lower expert.

    Raises:
        TypeError, ValueError: naming the field and what it expects.
    """

    factor: float | None = None
    limit: int | None = None
    rounding: Rounding = "ceil"
    policy: Policy = "score"
    drop_score: DropScore = "prob"
    expand: Expand = "none"
    local_experts: tuple[int, int] | None = None
    extra: int = 0
    expand_priority: ExpandPriority = "score"
    max_experts_per_token: int | None = None
    reroute_rounds: int = 1
    scope: Scope = "expert"
    experts_per_device: int | None = None
    seed: int = 0
    # The factor as numerator and denominator; None where it is infinite or not given.
    ratio: tuple[int, int] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        self._check_bound()
        require_choice("Capacity.policy", self.policy, get_args(Policy))
        require_choice("Capacity.drop_score", self.drop_score, get_args(DropScore))
        require_int("Capacity.seed", self.seed, minimum=0, maximum=2**63 - 1)
        require_int("Capacity.reroute_rounds", self.reroute_rounds, minimum=1, maximum=_MAX_INT)
        if self.max_experts_per_token is not None:
            most = self.max_experts_per_token
            require_int("Capacity.max_experts_per_token", most, minimum=1, maximum=_MAX_INT)
        self._check_expand()
        self._check_scope()

    def _check_bound(self) -> None:
        require_choice("Capacity.rounding", self.rounding, get_args(Rounding))
        if self.factor is not None and self.limit is not None:
            raise ValueError("Capacity takes factor or limit, not both")
        if self.limit is not None:
            require_int("Capacity.limit", self.limit, minimum=0, maximum=_MAX_INT)
        if self.factor is not None:
            try:
                exact = exact_factor(self.factor)
            except (TypeError, ValueError) as error:
                raise type(error)(f"Capacity.{error}") from None
            if exact is not None:
                object.__setattr__(self, "ratio", exact.as_integer_ratio())

    def _check_expand(self) -> None:
        require_choice("Capacity.expand", self.expand, get_args(Expand))
        require_choice("Capacity.expand_priority", self.expand_priority, get_args(ExpandPriority))
        require_int("Capacity.extra", self.extra, minimum=0)
        if (self.local_experts is not None) != (self.expand == "local"):
            raise ValueError(
                "Capacity.local_experts=(start, stop) goes with expand='local',"
                f" got {self.local_experts} with expand={self.expand!r}"
            )
        if self.local_experts is not None:
            require_range("Capacity.local_experts", self.local_experts)
        if self.extra and self.expand != "rank":
            raise ValueError(f"Capacity.extra goes with expand='rank', got expand={self.expand!r}")
        if self.reroute_rounds > 1 and self.expand != "none":
            raise ValueError(
                "Capacity.reroute_rounds goes with expand='none': rerouting chooses its own experts"
            )

    def _check_scope(self) -> None:
        require_choice("Capacity.scope", self.scope, get_args(Scope))
        if (self.experts_per_device is not None) != (self.scope == "device"):
            raise ValueError(
                "Capacity.experts_per_device goes with scope='device',"
                f" got {self.experts_per_device} with scope={self.scope!r}"
            )
        if self.experts_per_device is not None:
            require_int("Capacity.experts_per_device", self.experts_per_device, minimum=1)

    def check_experts(self, num_experts: int) -> None:
        """Raise ValueError where this capacity does not fit a layer of ``num_experts`` experts."""
        if self.local_experts is not None and self.local_experts[1] > num_experts:
            raise ValueError(
                f"Capacity.local_experts must end at {num_experts}, the number of experts,"
                f" or before, got {self.local_experts}"
            )
        if self.experts_per_device is not None and num_experts % self.experts_per_device:
            raise ValueError(
                "Capacity.experts_per_device must divide the number of experts,"
                f" got {self.experts_per_device} for {num_experts} experts"
            )
