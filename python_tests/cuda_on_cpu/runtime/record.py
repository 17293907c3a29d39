"""What the emulated device is told to be, and what it was asked to do."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..emulate import Report


@dataclass(frozen=True)
class Options:
    """``seed``: 0 runs warps and blocks in order. ``resident``: blocks in flight."""

    seed: int = 0
    arch: str = "sm_80"
    multiprocessors: int | None = None
    resident: int = 16
    max_steps: int = 200_000_000


@dataclass
class LaunchRecord:
    """One launch of a kernel, and the emulator's report of it."""

    name: str  # without templates, namespaces and arguments
    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_shared: int
    cooperative: bool
    report: Report

    @property
    def counts(self) -> dict[str, int]:
        return self.report.counts

    @property
    def warnings(self) -> list[str]:
        return self.report.warnings


@dataclass
class Record:
    """Launches, and the calls of the runtime: names for waits, (name, bytes) for the others."""

    launches: list[LaunchRecord] = field(default_factory=list)
    synchronisations: list[str] = field(default_factory=list)
    allocations: list[tuple[str, int]] = field(default_factory=list)
    frees: list[str] = field(default_factory=list)
    copies: list[tuple[str, int]] = field(default_factory=list)
    fills: list[tuple[str, int]] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """The counts of all launches, added."""
        total: Counter[str] = Counter()
        for launch in self.launches:
            total.update(launch.counts)
        return dict(total)

    @property
    def warnings(self) -> list[str]:
        return [text for launch in self.launches for text in launch.warnings]

    @property
    def names(self) -> list[str]:
        return [launch.name for launch in self.launches]


_options = Options()
_records: list[Record] = []


def options() -> Options:
    return _options


def records() -> list[Record]:
    return _records


@contextlib.contextmanager
def emulation(**changes) -> Iterator[None]:
    """Within it kernels run with other ``Options``."""
    global _options
    before = _options
    _options = replace(before, **changes)
    try:
        yield
    finally:
        _options = before


@contextlib.contextmanager
def recording(**changes) -> Iterator[Record]:
    """A ``Record`` of what happens within; ``changes`` as for ``emulation``."""
    record = Record()
    _records.append(record)
    try:
        with emulation(**changes):
            yield record
    finally:
        _records[:] = [other for other in _records if other is not record]
