"""The other ranks, as sharded_moe meets them: exchanges that name who keeps them from ending."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from .agreement import group_timeout, own_store, store_host
from .shard_terms import ShardTerms, digest, require_alike, require_parts
from .watch import Watch

_POLL_SECONDS = 0.005


@dataclass(eq=False)
class _Kept:
    """Of a group, between calls. It doesn't hold the group, so that it goes when the group does."""

    store: Store
    watch: Watch
    agreed: set[ShardTerms] = field(default_factory=set)
    meetings: int = 0


_KEPT: WeakKeyDictionary[dist.ProcessGroup, _Kept] = WeakKeyDictionary()


class Peers:
    """The ranks of ``group``; None is the default one. All calls are collective."""

    def __init__(self, group: dist.ProcessGroup | None):
        group = dist.group.WORLD if group is None else group
        if group is None:
            raise ValueError("group must be given where init_process_group was not called")
        self.group = group
        self.rank, self.num_ranks = group.rank(), group.size()
        kept = _KEPT.get(group)
        if kept is None:
            store, seconds = own_store(group, "sharded"), group_timeout(group)
            watch = Watch(store, store_host(group), self.rank, self.num_ranks, seconds)
            kept = _KEPT[group] = _Kept(store, watch)
        self._kept = kept
        self.guard = kept.watch.guard

    def gather(self, rows: Tensor, phase: str = "gather") -> Tensor:
        """All ranks' rows, which are equally many, in the order of the ranks."""
        everyone = rows.new_empty(self.num_ranks * rows.shape[0], rows.shape[1])
        work = dist.all_gather_single(everyone, rows, group=self.group, async_op=True)
        self._wait(work, phase, rows)
        return everyone

    def reduce_scatter(self, partial: Tensor) -> Tensor:
        """This rank's rows of the sum of all ranks' ``partial``."""
        out = partial.new_empty(partial.shape[0] // self.num_ranks, partial.shape[1])
        work = dist.reduce_scatter_single(out, partial, group=self.group, async_op=True)
        self._wait(work, "reduce-scatter", partial)
        return out

    def agree(self, terms: ShardTerms, neurons: int) -> None:
        """Compare terms that are new, by way of the store: any shape may differ.

        The neurons decide nothing about that: of two layers they may be alike on some ranks only.

        Raises:
            ValueError: what differs, on every rank.
            RankError: who did not come, raised, or takes this for agreed.
        """
        if terms not in self._kept.agreed:
            require_alike(self._meet([terms.in_words(), neurons]))
            self._kept.agreed.add(terms)

    def largest(
        self, num_tokens: int, terms: ShardTerms, neurons: int, device: torch.device
    ) -> int:
        """The largest T, by an exchange of one shape for all calls that also compares the terms.

        Raises:
            ValueError: what differs, on every rank.
        """
        alike = terms.hidden_size, terms.dtype.itemsize, terms.num_experts, terms.candidates
        numbers = [num_tokens, *alike, neurons, *digest(terms)]
        mine = torch.tensor([numbers], dtype=torch.int32, device=device)
        everyone = self.gather(mine, "sizes").tolist()
        first = everyone[0]
        for rank, row in enumerate(everyone):
            if row[1:5] != first[1:5]:
                raise ValueError(
                    "sharded_moe must be called alike on every rank: [hidden size, bytes of a"
                    f" number, experts, candidates] are {row[1:5]} on rank {rank},"
                    f" {first[1:5]} on rank 0"
                )
        if any(row[6:] != first[6:] for row in everyone):
            require_alike(self._meet([terms.in_words(), neurons]))
        require_parts([row[5] for row in everyone])
        return int(max(row[0] for row in everyone))

    def _meet(self, words: Any) -> list[Any]:
        """Every rank's words, of JSON's types, from the group's store."""
        kept = self._kept
        kept.meetings += 1
        keys = [f"terms/{kept.meetings}/{rank}" for rank in range(self.num_ranks)]
        arrival = _Arrival(kept.store, keys, keys[self.rank], json.dumps(words))
        kept.watch.wait(kept.watch.issued(arrival, "agreement"))
        return arrival.words

    def _wait(self, work: Any, phase: str, sent: Tensor) -> None:
        """On CUDA torch's own watchdog ends what does not end."""
        pending = self._kept.watch.issued(work, phase)
        if sent.device.type == "cpu":
            self._kept.watch.wait(pending)
        else:
            work.wait()


class _Arrival:
    """Words that every rank writes into the store: for a :class:`Watch` an exchange like others."""

    def __init__(self, store: Store, keys: list[str], own_key: str, own: str):
        self._store = store
        self._keys = keys
        self._unsaid: tuple[str, str] | None = (own_key, own)
        self.words: list[Any] = []

    def is_completed(self) -> bool:
        return len(self.words) == len(self._keys)

    def wait(self, timeout: timedelta = timedelta()) -> None:
        """RuntimeError where not all came in time, or where the store does not answer."""
        deadline = time.monotonic() + timeout.total_seconds()
        if self._unsaid is not None:
            self._store.set(*self._unsaid)
            self._unsaid = None
        while not self.is_completed():
            if self._store.check(self._keys):
                self.words = [json.loads(self._store.get(key)) for key in self._keys]
            elif time.monotonic() > deadline:
                raise RuntimeError("not every rank came")
            else:
                time.sleep(_POLL_SECONDS)
