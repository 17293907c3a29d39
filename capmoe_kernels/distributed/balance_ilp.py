"""The same clusters by integer programming (MoETuner's first program), with scipy's HiGHS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .balance import Balance, Clusters

# HiGHS holds constraints up to this, loads being counted in means.
_TOLERANCE = 1e-6


def balance_ilp(
    problem: Balance, greedy: Clusters, bound: float, time_limit: float
) -> tuple[Clusters, float]:
    """(clusters, lower bound), never worse than ``greedy`` and ``bound``, which they start from.

    x[e, c] says that cluster c holds expert e; z is the busiest load, to be minimised. MoETuner
    minimises the sum of |load - mean| instead; a layer waits for its busiest device, so this
    minimises that one. Equal sizes are constraints: without them clusters come out as they please.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    experts, clusters = len(problem.shares), problem.num_clusters
    scale = problem.mean
    cost = np.zeros(experts * clusters + 1)
    cost[-1] = 1
    upper = np.append(
        _distinct(problem).ravel(), problem.busiest(greedy) / scale * (1 + _TOLERANCE)
    )
    lower = np.append(np.zeros(experts * clusters), bound / scale)
    found = milp(
        cost,
        integrality=np.append(np.ones(experts * clusters), 0),
        bounds=Bounds(lower, upper),
        constraints=[LinearConstraint(*rows) for rows in _constraints(problem, scale)],
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    proven = found.mip_dual_bound
    if proven is not None and np.isfinite(proven):
        bound = max(bound, problem.round_up(float(proven) * scale * (1 - _TOLERANCE)))
    if found.x is None:
        return greedy, bound
    held = found.x[:-1].reshape(experts, clusters) > 0.5
    better = [np.flatnonzero(column).tolist() for column in held.T]
    best = min(greedy, better, key=problem.busiest)
    return best, min(bound, problem.busiest(best))


def _distinct(problem: Balance) -> NDArray[np.float64]:
    """Upper bounds of x: clusters are alike, so the i-th expert may open only the i-th.

    Without this every answer has num_clusters! twins, among which HiGHS would search.
    """
    upper = np.ones((len(problem.shares), problem.num_clusters))
    if max(problem.copies) == 1:
        order = np.argsort(-np.array(problem.shares), kind="stable")
        for opened, expert in enumerate(order[: problem.num_clusters]):
            upper[expert, opened + 1 :] = 0
    return upper


def _constraints(problem: Balance, scale: float) -> list[tuple[Any, Any, Any]]:
    """(rows, least, most): an expert's copies, a cluster's copies, a cluster's load under z."""
    from scipy.sparse import csr_array, eye_array, hstack, kron

    experts, clusters = len(problem.shares), problem.num_clusters
    each_expert = kron(eye_array(experts), np.ones((1, clusters)))
    each_cluster = kron(np.ones((1, experts)), eye_array(clusters))
    loads = kron(np.array([problem.shares]) / scale, eye_array(clusters))
    copies = np.array(problem.copies, dtype=float)
    return [
        (hstack([each_expert, csr_array((experts, 1))], "csr"), copies, copies),
        (
            hstack([each_cluster, csr_array((clusters, 1))], "csr"),
            float(problem.fewest),
            float(problem.most),
        ),
        (hstack([loads, csr_array(-np.ones((clusters, 1)))], "csr"), -np.inf, 0.0),
    ]
