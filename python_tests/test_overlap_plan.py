"""Where the experts go among other work: the cheapest of all places."""

from __future__ import annotations

import math

import hypothesis
import pytest
from hypothesis import strategies as st

from capmoe_kernels.distributed import overlap_plan

times = st.integers(0, 9)


@hypothesis.given(st.lists(times, max_size=6), times, times)
def test_is_the_first_of_the_best_places(comp, t_dispatch, t_combine):
    exposed = []
    for at in range(len(comp) + 1):
        clock = max(sum(comp[:at]), t_dispatch)  # the experts start
        end = clock + max(sum(comp[at:]), t_combine)  # and take no time of their own
        exposed.append(end - sum(comp))
    plan = overlap_plan(comp, t_dispatch, t_combine)
    assert plan.exposed == min(exposed)
    assert plan.position == exposed.index(min(exposed))


def test_scmoe():
    # Attention, MLP, attention, shared expert; a slow way there and a quick one back.
    assert overlap_plan([3.0, 4.0, 3.0, 2.0], 6.0, 4.0) == (2, 0.0)
    assert overlap_plan([], 1.5, 2.0) == (0, 3.5)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_refused(bad):
    for name, arguments in [
        ("comp", ([1.0, bad], 1.0, 1.0)),
        ("t_dispatch", ([], bad, 1.0)),
        ("t_combine", ([], 1.0, bad)),
    ]:
        with pytest.raises(ValueError, match=name):
            overlap_plan(*arguments)
