"""Bugs planted in csrc/cuda, one at a time: each must be seen by whoever checks its kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cuda_sources import planted

SEEDS = range(4)  # of the emulator's schedules
WRONG = AssertionError  # a result that is wrong, or a warning


@dataclass(frozen=True)
class Bug:
    """In ``file``, ``old`` becomes ``new``.

    ``probe(seed)`` checks the kernel under one schedule and must then raise one of ``caught``:
    an error of the emulator's, or AssertionError for a warning or a result that is wrong.
    """

    name: str
    file: str
    old: str
    new: str
    probe: Callable[[int], None]
    caught: type[Exception] | tuple[type[Exception], ...]


def must_surface(bug: Bug) -> None:
    """Fails unless some schedule shows the bug, in the way that is said."""
    with planted(bug.file, bug.old, bug.new):
        for seed in SEEDS:
            try:
                bug.probe(seed)
            except bug.caught:
                return
    pytest.fail(f"nobody sees this: {bug.file}: {bug.old} -> {bug.new}")


def each(bugs: list[Bug]):
    """Parametrizes a test with bugs."""
    return pytest.mark.parametrize("bug", bugs, ids=lambda bug: bug.name)


def each_probe(bugs: list[Bug]):
    """Parametrizes a test with the bugs' probes."""
    probes = {bug.probe.__name__: bug.probe for bug in bugs}
    return pytest.mark.parametrize("probe", probes.values(), ids=probes)


def bugs_of(file: str, *rows: tuple) -> list[Bug]:
    """Bugs of one file, each given as (name, old, new, probe, caught)."""
    return [Bug(name, file, *rest) for name, *rest in rows]


@pytest.fixture(autouse=True)
def emulator_alone(monkeypatch):
    """No launch is repeated on a GPU: what a bug does there is nobody's promise."""
    monkeypatch.setattr("cuda_on_cpu.gpu.can_run", lambda *_: False)
