"""The grid of settings an evaluation compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from ..capacity import Capacity, Policy
from ..integrations.ranks import local_experts
from .errors import UsageError

POLICIES: tuple[str, ...] = get_args(Policy)
EXPANDS: tuple[str, ...] = ("none", "local")
# Devices that anyone may want counted; each costs memory.
_MOST = 4096
# Below, a factor's fraction of denominator a million would be 0.
_LEAST = 1e-6


@dataclass(frozen=True)
class Setting:
    """One line of the table. ``factor`` None is dropless, and then the rest means nothing."""

    factor: float | None = None
    policy: str = "score"
    expand: str = "none"

    @property
    def name(self) -> str:
        """What the table calls the line's method."""
        if self.factor is None:
            return "dropless"
        return self.policy if self.expand == "none" else f"{self.policy}, {self.expand}"

    def capacity(self, num_devices: int, num_experts: int) -> Capacity | None:
        """The library's form; the ranks put their own experts in the place of rank 0's."""
        if self.factor is None:
            return None
        local = local_experts(0, num_devices, num_experts) if self.expand == "local" else None
        return Capacity(
            factor=self.factor,
            policy=self.policy,  # type: ignore[arg-type]
            expand=self.expand,  # type: ignore[arg-type]
            local_experts=local,
        )


DROPLESS = Setting()


def parse_factors(text: str) -> list[float]:
    """``"2.0,1.5"`` to factors, high ones first.

    Raises:
        UsageError: not a comma-separated list of factors as :func:`check_factor` takes them.
    """
    factors = []
    for item in _items("--capacity-factor", text):
        try:
            factor = float(item)
        except ValueError:
            raise UsageError(f"--capacity-factor {text}: {item!r} is not a number") from None
        check_factor(factor, f"--capacity-factor {text}: {item}")
        factors.append(factor)
    return sorted(set(factors), reverse=True)


def check_factor(factor: float, where: str) -> None:
    """Raise UsageError, which begins with ``where``, for what no capacity's factor may be."""
    if not (math.isfinite(factor) and factor >= 0):
        raise UsageError(f"{where} is not a finite number >= 0")
    if 0 < factor < _LEAST:
        raise UsageError(f"{where} is not 0 or at least {_LEAST:g}")


def parse_numbers(option: str, text: str) -> list[int]:
    """``"4,8"`` to numbers >= 1, in the order given.

    Raises:
        UsageError: not a comma-separated list of such.
    """
    items = _items(option, text)
    for item in items:
        if not (item.isascii() and item.isdigit() and 1 <= int(item) <= _MOST):
            raise UsageError(f"{option} {text}: {item!r} is not a number from 1 to {_MOST}")
    return list(dict.fromkeys(int(item) for item in items))


def parse_choices(option: str, text: str, choices: Sequence[str]) -> list[str]:
    """A comma-separated list of some of ``choices``, in the order given.

    Raises:
        UsageError: an item is none of them.
    """
    items = _items(option, text)
    for item in items:
        if item not in choices:
            raise UsageError(f"{option} {text}: {item!r} is not one of {', '.join(choices)}")
    return list(dict.fromkeys(items))


def make_grid(
    factors: Sequence[float], policies: Sequence[str], expands: Sequence[str]
) -> list[Setting]:
    """Every combination, grouped by method."""
    return [
        Setting(factor, policy, expand)
        for expand in expands
        for policy in policies
        for factor in factors
    ]


def _items(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(f"{option} {text!r}: expected a comma-separated list without gaps")
    return items
