"""Who is to blame when an exchange does not end: waiting that names the rank and the phase.

Nothing is written while exchanges are quick. A rank that has waited for a while writes down, in the
group's store, in which exchange it waits; one that fails writes that it failed. So at the timeout
the ranks that wrote nothing are those that never came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

from torch._C._distributed_c10d import Store

_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 1.0


class RankError(RuntimeError):
    """Other ranks died, stalled or raised: an exchange cannot end; the group is of no more use.

    Attributes:
        ranks: who, as ranks of the group; empty where it cannot be told.
        phase: the exchange they did not take part in: ``"construction"``, ``"counts"``,
            ``"dispatch"`` or ``"combine"``; of ``sharded_moe``, ``"agreement"``, ``"sizes"``,
            ``"gather"`` or ``"reduce-scatter"``.
    """

    def __init__(self, ranks: tuple[int, ...], phase: str, what: str):
        names = ", ".join(map(str, ranks))
        who = f"rank{'s' if len(ranks) > 1 else ''} {names}" if ranks else "a rank"
        super().__init__(f"{phase}: {who} {what}")
        self.ranks = ranks
        self.phase = phase


class Pending(NamedTuple):
    """An exchange that was issued: the step-th of its watch."""

    work: Any
    phase: str
    step: int


class _Word(NamedTuple):
    """What a rank last wrote: the step it is in, what it does there, and what it takes it for.

    "waiting", "failed", "done" with finding out why, or "raised ...": its own exception.
    """

    step: int = 0
    state: str = ""
    phase: str = ""


class Watch:
    """Waits for exchanges and knows who else does.

    Args:
        store: where the ranks write; of these exchanges only.
        host: the rank that the store dies with, if any.
        rank, num_ranks: of the group.
        timeout: seconds after which a wait ends with an error.
    """

    def __init__(self, store: Store, host: int | None, rank: int, num_ranks: int, timeout: float):
        self._store = store
        self._host = host
        self._rank = rank
        self._others = [other for other in range(num_ranks) if other != rank]
        self._timeout = timeout
        self._patience = min(_PATIENCE_SECONDS, timeout / 8)
        self._issued = 0
        self._raised_at = 0

    def issued(self, work: Any, phase: str) -> Pending:
        """Number an exchange; every rank issues them in the same order."""
        self._issued += 1
        if self._raised_at == self._issued:  # and yet here it is
            self._write("", 0, phase)
        return Pending(work, phase, self._issued)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let the others know of an exception that keeps this rank from the next exchange."""
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            self._raised_at = self._issued + 1
            with suppress(RankError):
                self._write(f"raised {type(error).__name__}: {error}", self._raised_at, "dispatch")
            raise

    def wait(self, pending: Pending) -> None:
        """Wait on the host until the exchange has ended.

        Raises:
            RankError: it failed, another rank raised, or the timeout passed.
        """
        deadline = time.monotonic() + self._timeout
        try:
            self._wait(pending, deadline)
        except RankError as error:
            self._leave(pending, error, deadline)
            raise

    def _wait(self, pending: Pending, deadline: float) -> None:
        written = False
        while not self._ended(pending, deadline):
            if not written:
                self._write("waiting", pending.step, pending.phase)
                written = True
            words = self._words(pending.phase)
            _check_phase(pending, words)
            if pending.step != self._raised_at:  # else all raised alike, and go on
                _check_raised(pending, words)
            if time.monotonic() + self._patience > deadline:
                self._blame(pending, deadline, f"no answer in {self._timeout:g} s")

    def _ended(self, pending: Pending, deadline: float) -> bool:
        work = pending.work
        try:
            work.wait(timedelta(seconds=self._patience))
            return True
        except RuntimeError:
            if not work.is_completed():
                return False
        try:
            work.wait()  # it ended meanwhile, or says why it failed
            return True
        except RuntimeError as error:
            self._blame(pending, deadline, str(error), error)
        return False

    def _blame(
        self, pending: Pending, deadline: float, reason: str, cause: Exception | None = None
    ) -> None:
        """Raise, naming those who have not said that they failed in this exchange, too."""
        self._write("failed", pending.step, pending.phase)
        while True:
            words = self._words(pending.phase)
            _check_phase(pending, words)
            _check_raised(pending, words)
            healthy = {
                rank
                for rank, word in words.items()
                if word.step > pending.step
                or (word.step == pending.step and word.state in ("failed", "done"))
            }
            silent = [rank for rank in self._others if rank not in healthy]
            if len(silent) <= 1 or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        absent = [rank for rank in silent if words[rank].step < pending.step]
        what = f"died or stalled and did not take part in exchange {pending.step} ({reason})"
        raise RankError(tuple(absent or silent), pending.phase, what) from cause

    def _leave(self, pending: Pending, error: RankError, deadline: float) -> None:
        """A rank that holds the store stays until those it does not blame have read enough."""
        with suppress(RankError):
            self._write("done", pending.step, pending.phase)
            readers = [other for other in self._others if other not in error.ranks]
            while self._rank == self._host and time.monotonic() < deadline:
                words = self._words(pending.phase)
                if all(words[reader].state == "done" for reader in readers):
                    return
                time.sleep(_POLL_SECONDS)

    def _write(self, state: str, step: int, phase: str) -> None:
        with self._answering(phase):
            self._store.set(str(self._rank), json.dumps(_Word(step, state, phase)))

    def _words(self, phase: str) -> dict[int, _Word]:
        with self._answering(phase):
            return {rank: self._word(str(rank)) for rank in self._others}

    def _word(self, key: str) -> _Word:
        return _Word(*json.loads(self._store.get(key))) if self._store.check([key]) else _Word()

    @contextmanager
    def _answering(self, phase: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            ranks = () if self._host is None else (self._host,)
            what = "that holds the group's store died: the store does not answer"
            raise RankError(ranks, phase, what) from error


def _check_raised(pending: Pending, words: dict[int, _Word]) -> None:
    for rank, word in words.items():
        if word.step == pending.step and word.state.startswith("raised"):
            raise RankError((rank,), pending.phase, word.state)


def _check_phase(pending: Pending, words: dict[int, _Word]) -> None:
    """Raise where others wait for another exchange than this one: neither would ever end."""
    phases = {
        rank: word.phase
        for rank, word in words.items()
        if word.step == pending.step and not word.state.startswith("raised")
    }
    astray = tuple(rank for rank, phase in phases.items() if phase != pending.phase)
    if astray:
        what = f"{'are' if len(astray) > 1 else 'is'} in {phases[astray[0]]!r} at that point:"
        raise RankError(astray, pending.phase, f"{what} the ranks were not called alike")
