"""Placement: who holds what, and what is refused."""

from __future__ import annotations

import pytest

from capmoe_kernels.distributed import Placement


def test_even_gives_the_first_ranks_the_rest():
    placement = Placement.even(7, 3)
    assert placement.experts_of_rank == ((0, 1, 2), (3, 4), (5, 6))
    assert (placement.num_experts, placement.num_ranks) == (7, 3)
    assert placement.ranks_of_expert == ((0,), (0,), (0,), (1,), (1,), (2,), (2,))


def test_more_ranks_than_experts():
    assert Placement.even(2, 4).experts_of_rank == ((0,), (1,), (), ())


def test_replicas():
    placement = Placement(((0, 1), (2, 0)))
    assert placement.ranks_of_expert == ((0, 1), (0,), (1,))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (((0, 2), (3,)), "expert 1 is on no rank"),
        (((0, 1, 0),), "must not list expert 0 twice"),
        (((), ()), "expert 0 is on no rank"),
        (((-1, 0),), "got -1"),
    ],
)
def test_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        Placement(ranks)
