"""Planning where experts stand (MoETuner, arXiv 2502.06643), from counts of past routing."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from .._checks import require_choice, require_finite, require_int
from .balance import Balance, Clusters, greedy
from .cluster_devices import (
    Order,
    chain,
    improve,
    is_uniform,
    slowest_links,
    slowest_links_bound,
)
from .placement import Placement
from .placement_plan import LayerPlan, LinkSolver, PlacementPlan, Solver, relative_gap


def place_experts(
    load: Any,
    transitions: Any = None,
    *,
    num_devices: int,
    experts_per_device: int | None = None,
    replicate: int = 0,
    bandwidth: Any = None,
    solver: Solver = "ilp",
    gap: float = 1e-3,
    time_limit: float = 10.0,
) -> PlacementPlan:
    """Place every layer's experts so that the busiest device is as light as possible.

    First each layer's experts are cut into clusters of equal load, then clusters are given to
    devices so that tokens between layers cross slow links little.

    Args:
        load: [L, E] or [E], tokens that asked for each expert, e.g. sums of
            ``Routing.demand_per_expert``; >= 0.
        transitions: [L - 1, E, E], tokens of expert e1 in a layer that go to e2 in the next.
        num_devices: G.
        experts_per_device: None: equally many on each, or one more on some where G does not divide
            them. A number: up to so many on each, which may balance better and takes memory.
        replicate: this many experts more than E are placed: a second copy, or a third, of whichever
            expert's copies have the most load, each on another device. The tokens of an expert are
            assumed to be split evenly among its copies.
        bandwidth: [G, G], > 0 off the diagonal, in any unit. None: all links alike.
        solver: ``"ilp"``: scipy's HiGHS where the greedy answer is not within ``gap`` of its bound.
            ``"greedy"``: never, without scipy, the same answer on every machine.
        gap: relative gap that is near enough; 0 asks for the optimum.
        time_limit: seconds for all of HiGHS's searches together. Ranks that plan each for itself
            may come to different plans where it runs out: plan once.

    Raises:
        ImportError: scipy is missing and ``solver`` is ``"ilp"``.
        TypeError, ValueError: naming the argument and what it expects.
    """
    require_int("num_devices", num_devices, minimum=1)
    require_choice("solver", solver, get_args(Solver))
    require_finite("time_limit", time_limit, above=0.0, most=1e6)
    if gap != 0:
        require_finite("gap", gap, above=0.0, most=1.0)
    loads = _loads(load)
    layers, experts = loads.shape
    require_int("replicate", replicate, minimum=0, maximum=experts * (num_devices - 1))
    sizes = _sizes(experts + replicate, num_devices, experts_per_device)
    steps = _counts("transitions", transitions, [layers - 1, experts, experts])
    links = _links(bandwidth, num_devices)
    if solver == "ilp":
        _require_scipy()
    ends = time.monotonic() + time_limit if solver == "ilp" else 0.0
    problems = [_problem(layer, replicate, num_devices, sizes) for layer in loads.tolist()]
    balanced = []
    for number, problem in enumerate(problems):
        waiting = layers - number + (steps is not None)
        balanced.append(_balance(problem, gap, (ends - time.monotonic()) / waiting))
    if steps is None:
        return PlacementPlan(tuple(map(_layer_plan, problems, balanced)))
    return _with_links(problems, balanced, steps, links, gap, ends - time.monotonic())


def _loads(load: Any) -> Tensor:
    loads = _counts("load", load)
    assert loads is not None
    loads = loads[None] if loads.dim() == 1 else loads
    if loads.dim() != 2 or 0 in loads.shape:
        raise ValueError(f"load must have shape [L, E] or [E], got {list(loads.shape)}")
    return loads


def _counts(name: str, counts: Any, shape: list[int] | None = None) -> Tensor | None:
    if counts is None and shape is not None:
        return None
    numbers = torch.as_tensor(counts, dtype=torch.float64, device="cpu")
    if shape is not None and list(numbers.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {list(numbers.shape)}")
    if not bool(((numbers >= 0) & numbers.isfinite()).all()):
        raise ValueError(f"{name} must hold numbers >= 0, none of them inf or NaN")
    return numbers


def _links(bandwidth: Any, num_devices: int) -> Tensor:
    links = _counts("bandwidth", bandwidth, [num_devices, num_devices])
    if links is None:
        return torch.ones(num_devices, num_devices, dtype=torch.float64)
    links = links.clone().fill_diagonal_(1)  # nothing crosses a link there
    if not bool((links > 0).all()):
        raise ValueError("bandwidth must be > 0 between different devices")
    return links


def _sizes(slots: int, num_devices: int, experts_per_device: int | None) -> tuple[int, int]:
    """The fewest and the most experts on a device."""
    if experts_per_device is None:
        return slots // num_devices, -(-slots // num_devices)
    least = -(-slots // num_devices)
    require_int("experts_per_device", experts_per_device, minimum=least)
    return 0, experts_per_device


def _require_scipy() -> None:
    if find_spec("scipy") is None or find_spec("numpy") is None:
        raise ImportError(
            "place_experts needs scipy for solver='ilp': pip install 'capmoe-kernels[placement]',"
            " or take solver='greedy'"
        )


def _problem(
    loads: list[float], replicate: int, num_devices: int, sizes: tuple[int, int]
) -> Balance:
    """The experts' copies: each further one where a copy has the most load."""
    copies = [1] * len(loads)
    hottest = [(-load, expert) for expert, load in enumerate(loads)] if num_devices > 1 else []
    heapq.heapify(hottest)
    for _ in range(replicate):
        _, expert = heapq.heappop(hottest)
        copies[expert] += 1
        if copies[expert] < num_devices:
            heapq.heappush(hottest, (-loads[expert] / copies[expert], expert))
    shares = tuple(load / n for load, n in zip(loads, copies, strict=True))
    return Balance(shares, tuple(copies), num_devices, *sizes)


class _Balanced(NamedTuple):
    clusters: Clusters
    bound: float
    solver: Solver


def _balance(problem: Balance, gap: float, seconds: float) -> _Balanced:
    found, bound = greedy(problem), problem.bound()
    if relative_gap(problem.busiest(found), bound) <= max(gap, 1e-9) or seconds <= 0:
        return _Balanced(_ordered(found), bound, "greedy")
    from .balance_ilp import balance_ilp

    better, bound = balance_ilp(problem, found, bound, seconds)
    return _Balanced(_ordered(better), bound, "greedy" if better is found else "ilp")


def _ordered(clusters: Clusters) -> Clusters:
    """Larger ones first, as in Placement.even; then by their lowest expert."""
    return sorted(map(sorted, clusters), key=lambda cluster: (-len(cluster), cluster))


def _layer_plan(problem: Balance, balanced: _Balanced, order: Order | None = None) -> LayerPlan:
    clusters = balanced.clusters
    if order is not None:
        clusters = [clusters[order.index(device)] for device in range(len(order))]
    placement = Placement(tuple(map(tuple, clusters)))
    return LayerPlan(placement, tuple(map(problem.load, clusters)), balanced.bound, balanced.solver)


def _with_links(
    problems: list[Balance],
    balanced: list[_Balanced],
    steps: Tensor,
    links: Tensor,
    gap: float,
    seconds: float,
) -> PlacementPlan:
    members = [_members(*layer) for layer in zip(problems, balanced, strict=True)]
    traffic = [members[i] @ step @ members[i + 1].mT for i, step in enumerate(steps)]
    orders, bound, solver = _orders(traffic, links, gap, seconds)
    plans = tuple(map(_layer_plan, problems, balanced, orders))
    return PlacementPlan(plans, slowest_links(traffic, links, orders), bound, solver)


def _members(problem: Balance, balanced: _Balanced) -> Tensor:
    """[G, E]: which part of an expert's tokens a cluster gets."""
    members = torch.zeros(problem.num_clusters, len(problem.shares), dtype=torch.float64)
    for row, cluster in zip(members, balanced.clusters, strict=True):
        for expert in cluster:
            row[expert] = 1 / problem.copies[expert]
    return members


def _orders(
    traffic: Sequence[Tensor], links: Tensor, gap: float, seconds: float
) -> tuple[list[Order], float, LinkSolver]:
    orders, bound = chain(traffic, links), slowest_links_bound(traffic, links)
    if is_uniform(links):
        return orders, bound, "exact"
    orders = improve(traffic, links, orders)
    near = relative_gap(slowest_links(traffic, links, orders), bound) <= max(gap, 1e-9)
    if near or seconds <= 0:
        return orders, bound, "greedy"
    from .cluster_devices_ilp import MOST_VARIABLES, num_variables, orders_ilp

    if num_variables(len(orders), len(links)) > MOST_VARIABLES:
        return orders, bound, "greedy"
    better, bound = orders_ilp(traffic, links, orders, bound, seconds)
    return better, bound, "greedy" if better is orders else "ilp"
