"""Which rank holds which experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .._checks import require_int


@dataclass(frozen=True)
class Placement:
    """Every rank's experts, in the order in which the rank keeps their weights.

    An expert may stand on several ranks (a replica): its tokens are then shared among them.

    Attributes:
        experts_of_rank: for each rank the ids of its experts. Together they must be 0 to E - 1,
            each on at least one rank and no rank twice; a rank may have none.

    Raises:
        ValueError: naming the expert that is missing or twice on a rank.
    """

    experts_of_rank: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        ranks = tuple(tuple(experts) for experts in self.experts_of_rank)
        object.__setattr__(self, "experts_of_rank", ranks)
        for rank, experts in enumerate(ranks):
            twice = sorted({e for e in experts if experts.count(e) > 1})
            if twice:
                raise ValueError(f"experts_of_rank must not list expert {twice[0]} twice on {rank}")
        held = {expert for experts in ranks for expert in experts}
        missing = sorted(set(range(max(held, default=0) + 1)) - held)
        if missing or min(held) < 0:
            what = f"expert {missing[0]} is on no rank" if missing else f"got {min(held)}"
            raise ValueError(f"experts_of_rank must hold experts 0 to E - 1: {what}")

    @classmethod
    def even(cls, num_experts: int, num_ranks: int) -> Placement:
        """Contiguous experts, the first E % D ranks one more than the others."""
        require_int("num_experts", num_experts, minimum=1)
        require_int("num_ranks", num_ranks, minimum=1)
        share, more = divmod(num_experts, num_ranks)
        starts = [rank * share + min(rank, more) for rank in range(num_ranks + 1)]
        ranges = pairwise(starts)
        return cls(tuple(tuple(range(start, stop)) for start, stop in ranges))

    @property
    def num_ranks(self) -> int:
        return len(self.experts_of_rank)

    @cached_property
    def num_experts(self) -> int:
        return 1 + max(expert for experts in self.experts_of_rank for expert in experts)

    @cached_property
    def ranks_of_expert(self) -> tuple[tuple[int, ...], ...]:
        """For each expert the ranks that hold it, lowest first."""
        ranks: list[list[int]] = [[] for _ in range(self.num_experts)]
        for rank, experts in enumerate(self.experts_of_rank):
            for expert in experts:
                ranks[expert].append(rank)
        return tuple(map(tuple, ranks))


def check_ranks(placement: Placement, num_experts: int, num_ranks: int) -> None:
    """Refuse a placement of other experts or ranks."""
    given = (placement.num_experts, placement.num_ranks)
    if given != (num_experts, num_ranks):
        raise ValueError(
            f"placement must have {num_experts} experts on {num_ranks} ranks,"
            f" got {given[0]} on {given[1]}"
        )
