"""The exchanges: rows to the ranks that hold their experts, and the experts' outputs back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .._routing_checks import require_row_numbers
from ..ops import run
from ..routing import Routing
from .watch import Pending, Watch
from .wire import Blocks, Wire, tokens_of_rows

T = TypeVar("T")

_COUNT_BYTES = 4


class Handle(Generic[T]):
    """An exchange under way. Every rank waits for its handles in the order it got them."""

    def __init__(self, finish: Callable[[], T]):
        self._finish: Callable[[], T] | None = finish
        self._result: T

    def wait(self) -> T:
        """The result; on CUDA the current stream waits, not the host. May be called again.

        Raises:
            RankError: another rank died, stalled or raised.
        """
        if self._finish is not None:
            self._result = self._finish()
            self._finish = None
        return self._result


class Sent(NamedTuple):
    """What a rank remembers of the rows it sent, to sum up what comes back for them."""

    rows: Tensor
    """[T, K] int32: the row of the sent buffer, -1 where dropped or unused."""
    weights: Tensor
    """[T, K] float32."""
    num_rows: int
    splits: tuple[list[int], list[int]] | None
    """Rows sent to each rank and received from each; None where all are equal."""


class Dispatched(NamedTuple):
    """What a rank received: W rows, in the order in which they came."""

    rows: Tensor
    """[W, H]: of each source its rows by own expert; rows without a token are unspecified."""
    routing: Routing
    """Of the W rows as tokens, each with one choice among the rank's own experts, in the order of
    its placement: what grouped_mlp reads. One expert without any rows where the rank has none."""
    sent: Sent


class Exchange(ABC):
    """Rows there and outputs back over ``group``, watched."""

    def __init__(self, group: dist.ProcessGroup, wire: Wire, watch: Watch):
        self.group = group
        self.wire = wire
        self.watch = watch

    @abstractmethod
    def dispatch(self, hidden_states: Tensor, routing: Routing) -> Handle[Dispatched]:
        """Send every kept pair's row to a holder of its expert."""

    def combine(self, y: Tensor, dispatched: Dispatched) -> Handle[Tensor]:
        """Send the outputs [N, H] back the way their inputs came; sum them up by weight.

        They were computed expert by expert and leave source by source: one copy, the only one that
        a received row costs.
        """
        sent = dispatched.sent
        back = run("dispatch", y, dispatched.routing.rows[:, 0])
        out = back.new_empty(sent.num_rows, back.shape[1])
        pending = self.post(out, back, "combine", sent.splits and sent.splits[::-1])

        def finish() -> Tensor:
            self.wait(pending, back)
            summed: Tensor = run("combine", out, sent.rows, sent.weights)
            return summed

        return Handle(finish)

    def post(
        self,
        received: Tensor,
        sent: Tensor,
        phase: str,
        splits: tuple[list[int], list[int]] | None = None,
    ) -> Pending:
        to, of = splits or (None, None)
        work = dist.all_to_all_single(received, sent, of, to, group=self.group, async_op=True)
        return self.watch.issued(work, phase)

    def wait(self, pending: Pending, sent: Tensor) -> None:
        """``sent`` is kept until then. On CUDA torch's own watchdog ends what does not end."""
        if sent.device.type == "cpu":
            self.watch.wait(pending)
        else:
            pending.work.wait()


class FixedExchange(Exchange):
    """At most C rows for each (source, expert): equal splits of one static shape.

    A rank's part holds, first, its blocks' counts, in as many rows as they need, then P blocks of C
    rows. No size is exchanged and nothing waits for the host.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        wire: Wire,
        watch: Watch,
        capacity: int,
        row_bytes: int,
    ):
        super().__init__(group, wire, watch)
        self.capacity = capacity
        self.header_rows = -(-wire.num_slots * _COUNT_BYTES // row_bytes)
        self.rank_rows = self.header_rows + wire.num_slots * capacity
        require_row_numbers(self.num_rows)

    @property
    def num_rows(self) -> int:
        """W, of the buffer sent and of the one received."""
        return self.wire.placement.num_ranks * self.rank_rows

    def dispatch(self, hidden_states: Tensor, routing: Routing) -> Handle[Dispatched]:
        starts = self._starts(hidden_states.device)
        counts = self.wire.block_counts(routing.tokens_per_expert)
        rows = self.wire.pair_rows(routing, starts)
        payload = run("dispatch", hidden_states, tokens_of_rows(rows, self.num_rows))
        self._header(payload).copy_(
            counts.view(self.wire.placement.num_ranks, -1).view(torch.uint8)
        )
        received = torch.empty_like(payload)
        pending = self.post(received, payload, "dispatch")

        def finish() -> Dispatched:
            self.wait(pending, payload)
            theirs = self._header(received).contiguous().view(torch.int32).flatten()
            routed = self.wire.received(Blocks(starts, theirs, self.num_rows))
            return Dispatched(received, routed, Sent(rows, routing.weights, self.num_rows, None))

        return Handle(finish)

    def _starts(self, device: torch.device) -> Tensor:
        ranks = torch.arange(self.wire.placement.num_ranks, device=device) * self.rank_rows
        slots = torch.arange(self.wire.num_slots, device=device) * self.capacity
        return (ranks[:, None] + slots + self.header_rows).flatten()

    def _header(self, payload: Tensor) -> Tensor:
        """[D, 4 * P] bytes: the counts of each rank's part."""
        parts = payload.view(self.wire.placement.num_ranks, -1).view(torch.uint8)
        return parts[:, : self.wire.num_slots * _COUNT_BYTES]


class CountedExchange(Exchange):
    """Any number of rows: counts first, then exactly the rows there are.

    The host waits for the counts: sizes must be known to it.
    """

    def dispatch(self, hidden_states: Tensor, routing: Routing) -> Handle[Dispatched]:
        counts = self.wire.block_counts(routing.tokens_per_expert)
        theirs = torch.empty_like(counts)
        self.wait(self.post(theirs, counts, "counts"), counts)
        both = torch.stack([counts, theirs]).view(2, self.wire.placement.num_ranks, -1)
        to, of = both.sum(2).tolist()
        rows = self.wire.pair_rows(routing, _starts(counts))
        payload = run("dispatch", hidden_states, tokens_of_rows(rows, sum(to)))
        received = payload.new_empty(sum(of), payload.shape[1])
        pending = self.post(received, payload, "dispatch", (to, of))

        def finish() -> Dispatched:
            self.wait(pending, payload)
            routed = self.wire.received(Blocks(_starts(theirs), theirs, sum(of)))
            return Dispatched(received, routed, Sent(rows, routing.weights, sum(to), (to, of)))

        return Handle(finish)


def _starts(counts: Tensor) -> Tensor:
    """Where blocks start that follow one another."""
    return counts.cumsum(0) - counts
