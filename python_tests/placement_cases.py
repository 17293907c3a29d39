"""What the tests of placement planning share: solvers, and problems."""

from __future__ import annotations

import importlib.util
import random

import pytest

needs_scipy = pytest.mark.skipif(
    importlib.util.find_spec("scipy") is None, reason="scipy is not installed"
)
solvers = pytest.mark.parametrize("solver", [pytest.param("ilp", marks=needs_scipy), "greedy"])


def random_problem(seed):
    rng = random.Random(seed)
    experts, devices = rng.randint(1, 7), rng.randint(1, 4)
    draw = rng.choice([lambda: rng.randint(0, 30), lambda: rng.lognormvariate(0, 1.5)])
    loads = [draw() for _ in range(experts)]
    slots = experts
    replicate = 0
    if devices > 1 and rng.random() < 0.4:
        replicate = rng.randint(1, min(8 - experts, experts * (devices - 1)))
        slots += replicate
    room = -(-slots // devices) + rng.randint(0, 2) if rng.random() < 0.3 else None
    return loads, devices, replicate, room


def copies_of(placement):
    return [len(ranks) for ranks in placement.ranks_of_expert]
