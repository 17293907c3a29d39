"""Copies of experts into equally loaded clusters: a lower bound, and a greedy answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

Clusters = list[list[int]]

# What counts as an improvement, relative to the mean load: more than float64 sums get wrong.
_STEP = 1e-12


@dataclass(frozen=True)
class Balance:
    """One layer's problem: the busiest cluster shall be as light as possible.

    Attributes:
        shares: load of one copy of each expert.
        copies: of each expert, on as many different clusters.
        num_clusters: how many, a device each.
        fewest, most: copies in a cluster.
    """

    shares: tuple[float, ...]
    copies: tuple[int, ...]
    num_clusters: int
    fewest: int
    most: int

    def load(self, cluster: list[int]) -> float:
        return math.fsum(self.shares[expert] for expert in cluster)

    def busiest(self, clusters: Clusters) -> float:
        return max(map(self.load, clusters))

    @property
    def mean(self) -> float:
        loads = (share * n for share, n in zip(self.shares, self.copies, strict=True))
        return math.fsum(loads) / self.num_clusters

    def bound(self) -> float:
        """No clusters have a busiest one below this.

        The busiest has at least the mean. It also holds the hottest expert, or two of the
        num_clusters + 1 hottest copies, beside which come others, at best the coolest.
        """
        every = sorted(self._every_copy(), reverse=True)
        coolest = every[::-1]
        bound = max(self.mean, every[0] + math.fsum(coolest[: max(self.fewest - 1, 0)]))
        if len(every) > self.num_clusters:
            pair = every[self.num_clusters - 1] + every[self.num_clusters]
            bound = max(bound, pair + math.fsum(coolest[: max(self.fewest - 2, 0)]))
        return self.round_up(bound)

    def round_up(self, bound: float) -> float:
        """Whole loads add up to whole loads."""
        if all(share.is_integer() for share in self.shares):
            return float(math.ceil(bound * (1 - 1e-9)))
        return bound

    def _every_copy(self) -> list[float]:
        pairs = zip(self.shares, self.copies, strict=True)
        return [share for share, n in pairs for _ in range(n)]


def greedy(problem: Balance) -> Clusters:
    """The best of several starts, each improved by moves and swaps."""
    starts = [_dealt(problem), _contiguous(problem), _lightest_first(problem)]
    improved = [_improve(problem, start) for start in starts if start is not None]
    return min(improved, key=problem.busiest)


def _hottest_first(problem: Balance) -> list[int]:
    return sorted(range(len(problem.shares)), key=lambda expert: -problem.shares[expert])


def _dealt(problem: Balance) -> Clusters:
    """Hottest first, in turn; an expert's copies come in a row, so on different clusters."""
    order = [expert for expert in _hottest_first(problem) for _ in range(problem.copies[expert])]
    return [order[cluster :: problem.num_clusters] for cluster in range(problem.num_clusters)]


def _contiguous(problem: Balance) -> Clusters | None:
    """Where the experts stand unplaced, so that no plan is worse than having none."""
    if max(problem.copies) > 1:
        return None
    share, more = divmod(len(problem.shares), problem.num_clusters)
    sizes = [share + (cluster < more) for cluster in range(problem.num_clusters)]
    experts = iter(range(len(problem.shares)))
    return [[next(experts) for _ in range(size)] for size in sizes]


def _lightest_first(problem: Balance) -> Clusters | None:
    """Hottest first, each copy to the lightest cluster that has room (LPT).

    None where room is left only beside another copy of the same expert.
    """
    clusters: Clusters = [[] for _ in range(problem.num_clusters)]
    loads = [0.0] * problem.num_clusters
    spare = sum(problem.copies) - problem.num_clusters * problem.fewest
    for expert in _hottest_first(problem):
        for _ in range(problem.copies[expert]):
            free = [
                cluster
                for cluster, held in enumerate(clusters)
                if expert not in held
                and (len(held) < problem.fewest or (spare > 0 and len(held) < problem.most))
            ]
            if not free:
                return None
            chosen = min(free, key=lambda cluster: loads[cluster])
            spare -= len(clusters[chosen]) >= problem.fewest
            clusters[chosen].append(expert)
            loads[chosen] += problem.shares[expert]
    return clusters


def _improve(problem: Balance, clusters: Clusters) -> Clusters:
    """While it helps: take from a busiest cluster, in a swap or not, so that both come out below.

    The loads in descending order fall each time, so this ends.
    """
    clusters = [list(cluster) for cluster in clusters]
    while step := _step(problem, clusters):
        source, target, given, taken = step
        clusters[source].remove(given)
        clusters[target].append(given)
        if taken is not None:
            clusters[target].remove(taken)
            clusters[source].append(taken)
    return clusters


def _step(problem: Balance, clusters: Clusters) -> tuple[int, int, int, int | None] | None:
    """(busiest, other, expert given, expert taken), the best such exchange."""
    shares = problem.shares
    loads = [problem.load(cluster) for cluster in clusters]
    source = max(range(len(loads)), key=lambda cluster: loads[cluster])
    best, chosen = loads[source] - _STEP * problem.mean, None
    for target in range(len(clusters)):
        for given, taken in product(clusters[source], _partners(problem, clusters, source, target)):
            back = 0.0 if taken is None else shares[taken]
            moved = shares[given] - back
            after = max(loads[source] - moved, loads[target] + moved)
            if after >= best or given in clusters[target] or taken in clusters[source]:
                continue
            best, chosen = after, (source, target, given, taken)
    return chosen


def _partners(
    problem: Balance, clusters: Clusters, source: int, target: int
) -> list[int] | list[int | None]:
    """What the target may give for an expert; None, nothing, where the sizes allow it."""
    if source == target:
        return []
    sizes = len(clusters[source]) - 1, len(clusters[target]) + 1
    if sizes[0] >= problem.fewest and sizes[1] <= problem.most:
        return [None, *clusters[target]]
    return clusters[target]
