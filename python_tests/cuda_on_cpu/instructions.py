"""What lowering makes of a statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Target(NamedTuple):
    """Where control may go: a label, a jump table, or a function's begin."""

    kind: str
    name: str


@dataclass
class Instruction:
    handler: int
    guard: int
    negate: bool
    operands: list[int]
    immediates: list[int]
    line: int
    source: tuple[str, int] | None
    text: str
    scope: int
    target: Target | None = None
    place: int = -1  # of the target, when all instructions have theirs
