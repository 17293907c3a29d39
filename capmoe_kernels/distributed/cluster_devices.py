"""Clusters of experts onto devices, so that tokens change device over fast links or not at all.

MoETuner's second program. Between two layers the slowest link counts: of all pairs of different
devices the most traffic over bandwidth. The sum over the layers is to be small.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise, permutations, product

import torch
from torch import Tensor

Order = list[int]  # of each cluster its device


def link_times(traffic: Tensor, bandwidth: Tensor, before: Order, after: Order) -> Tensor:
    """[G, G] traffic over bandwidth between devices; 0 on the diagonal.

    ``traffic[c1, c2]``: tokens that cluster c1 of one layer hands to c2 of the next.
    """
    placed = torch.empty_like(traffic)
    placed[torch.tensor(before)[:, None], torch.tensor(after)] = traffic
    return (placed / bandwidth).fill_diagonal_(0)


def slowest_links(traffic: Sequence[Tensor], bandwidth: Tensor, orders: Sequence[Order]) -> float:
    """The objective: the slowest link's time, summed over pairs of layers."""
    pairs = zip(traffic, pairwise(orders), strict=True)
    return sum(float(link_times(t, bandwidth, *two).max()) for t, two in pairs)


def is_uniform(bandwidth: Tensor) -> bool:
    links = bandwidth[~torch.eye(len(bandwidth), dtype=torch.bool)]
    return links.numel() == 0 or bool((links == links[0]).all())


def chain(traffic: Sequence[Tensor], bandwidth: Tensor) -> list[Order]:
    """Layer by layer the best order after the one before.

    Where all links are alike this is the optimum, since two layers' time then depends only on how
    their orders differ. Where not, the first layer's order matters: of a few the best.
    """
    firsts = [list(range(len(bandwidth)))]
    if not is_uniform(bandwidth):
        firsts += _some_orders(len(bandwidth))
    chains = [_chain_from(first, traffic, bandwidth) for first in firsts]
    return min(chains, key=lambda orders: slowest_links(traffic, bandwidth, orders))


def _some_orders(size: int) -> list[Order]:
    """All of few devices, else the same random ones in every run."""
    if size <= 4:
        return list(map(list, permutations(range(size))))
    draw = random.Random(0)
    return [draw.sample(range(size), size) for _ in range(24)]


def _chain_from(first: Order, traffic: Sequence[Tensor], bandwidth: Tensor) -> list[Order]:
    orders = [first]
    for step in traffic:
        orders.append(_best_after(step, bandwidth, orders[-1]))
    return orders


def slowest_links_bound(traffic: Sequence[Tensor], bandwidth: Tensor) -> float:
    """No orders do better: every two layers by themselves, all links like the fastest."""
    if len(bandwidth) == 1:
        return 0.0
    links = bandwidth[~torch.eye(len(bandwidth), dtype=torch.bool)]
    fastest = torch.full_like(bandwidth, float(links.max()))
    same = list(range(len(bandwidth)))
    alone = [[same, _best_after(step, fastest, same)] for step in traffic]
    return sum(
        slowest_links([step], fastest, two) for step, two in zip(traffic, alone, strict=True)
    )


def improve(traffic: Sequence[Tensor], bandwidth: Tensor, orders: Sequence[Order]) -> list[Order]:
    """Swaps two clusters of a layer as long as that helps."""
    orders = [list(order) for order in orders]

    def around(layer: int) -> float:
        near = slice(max(layer - 1, 0), layer + 2)
        return slowest_links(traffic[max(layer - 1, 0) : layer + 1], bandwidth, orders[near])

    helped = True
    while helped:
        helped = False
        for layer, order in enumerate(orders):
            for a, b in product(_at_slowest(traffic, bandwidth, orders, layer), range(len(order))):
                before = around(layer)
                order[a], order[b] = order[b], order[a]
                if around(layer) < before * (1 - 1e-9):
                    helped = True
                else:
                    order[a], order[b] = order[b], order[a]
    return orders


def _at_slowest(
    traffic: Sequence[Tensor], bandwidth: Tensor, orders: Sequence[Order], layer: int
) -> list[int]:
    """A layer's clusters at the slowest links before and after it: only moving these can help."""
    devices = set()
    for step in range(max(layer - 1, 0), min(layer + 1, len(traffic))):
        times = link_times(traffic[step], bandwidth, orders[step], orders[step + 1])
        link = divmod(int(times.argmax()), len(bandwidth))
        devices.add(link[layer - step])
    return [orders[layer].index(device) for device in sorted(devices)]


def _best_after(traffic: Tensor, bandwidth: Tensor, before: Order) -> Order:
    """A bottleneck assignment, then swaps that lessen all links' time and slow the slowest none."""
    size = len(bandwidth)
    placed = torch.empty_like(traffic)
    placed[torch.tensor(before)] = traffic
    # times[g1, c2, g2]: of the link from g1 if cluster c2 stood on g2
    times = placed[:, :, None] / bandwidth[:, None, :]
    own = torch.arange(size)
    times[own, :, own] = 0
    slowest, total = times.amax(0), times.sum(0)
    order = _bottleneck(slowest)
    limit = float(slowest[own, torch.tensor(order)].max())
    return _lessen(total.masked_fill(slowest > limit, torch.inf).tolist(), order)


def _bottleneck(cost: Tensor) -> Order:
    """The one-to-one order whose largest cost is least: bisection over matchings."""
    levels = sorted(set(cost.flatten().tolist()))
    low, high = 0, len(levels) - 1
    best = None
    while low <= high:
        middle = (low + high) // 2
        found = _matching((cost <= levels[middle]).tolist())
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle - 1
    assert best is not None  # with the highest level everything goes
    return best


def _matching(allowed: list[list[bool]]) -> Order | None:
    """Kuhn's augmenting paths; None where no perfect matching exists."""
    size = len(allowed)
    holder: list[int | None] = [None] * size

    def settle(cluster: int, seen: set[int]) -> bool:
        for device in range(size):
            if allowed[cluster][device] and device not in seen:
                seen.add(device)
                other = holder[device]
                if other is None or settle(other, seen):
                    holder[device] = cluster
                    return True
        return False

    if not all(settle(cluster, set()) for cluster in range(size)):
        return None
    order = [0] * size
    for device, cluster in enumerate(holder):
        assert cluster is not None
        order[cluster] = device
    return order


def _lessen(cost: list[list[float]], order: Order) -> Order:
    helped = True
    while helped:
        helped = False
        for a, b in combinations(range(len(order)), 2):
            now = cost[a][order[a]] + cost[b][order[b]]
            if cost[a][order[b]] + cost[b][order[a]] < now * (1 - 1e-9):
                order[a], order[b] = order[b], order[a]
                helped = True
    return order
