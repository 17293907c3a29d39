"""The exception behind an error code: kept while C++ runs, raised when it has come back."""

from __future__ import annotations

from .. import errors

# The codes of cudaError_t that a GPU would give; the rest are cudaErrorLaunchFailure.
CODES = {
    errors.OutOfBounds: 700,
    errors.ReadOnly: 700,
    errors.Misaligned: 716,
    errors.BadLaunch: 1,
    errors.Unsupported: 801,
    errors.EmulationError: 719,
}

_kept: list[BaseException] = []


def keep_problem(error: BaseException) -> None:
    """The first is kept: what follows it is its consequence."""
    if not _kept:
        _kept.append(error)


def take_problem() -> BaseException | None:
    return _kept.pop() if _kept else None
