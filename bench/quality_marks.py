"""A finding of the paper and whether this model shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SEEN, PARTLY, NOT_SEEN, NOT_TESTABLE = "seen", "partly seen", "not seen", "not testable here"


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        claim: what the paper says, and where.
        rule: when it counts as seen.
        evidence: the numbers that decide.
        mark: seen, partly seen, not seen, or not testable here.
    """

    claim: str
    rule: str
    evidence: str
    mark: str


def mark(held: Sequence[bool]) -> str:
    """Seen where the rule held every time, partly where it held sometimes."""
    if all(held):
        return SEEN
    return PARTLY if any(held) else NOT_SEEN


def listed(parts: dict[float, str], shown: Sequence[float]) -> str:
    """What was found at each of the factors shown; the tables have the others."""
    return "; ".join(f"{factor:g}: {parts[factor]}" for factor in shown)


def tally(held: Sequence[bool], what: str) -> str:
    """``21 of 21 lose more``."""
    return f"{sum(held)} of {len(held)} {what}"
