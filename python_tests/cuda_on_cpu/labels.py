"""Names of places in the code: labels and jump tables, each known between two braces."""

from __future__ import annotations

from .errors import Unsupported


class Labels:
    """Scopes are numbered; 0 is outside of all."""

    def __init__(self) -> None:
        self.parents = [-1]
        self.places: dict[tuple[int, str], int] = {}
        self.tables: dict[tuple[int, str], list[str]] = {}
        self.latest = ""

    def open(self, parent: int) -> int:
        """A new scope within another."""
        self.parents.append(parent)
        return len(self.parents) - 1

    def define(self, scope: int, name: str, place: int) -> None:
        self.places[scope, name] = place
        self.latest = name

    def define_table(self, scope: int, names: list[str]) -> None:
        """Of .branchtargets, which belong to the label before them."""
        self.tables[scope, self.latest] = names

    def find(self, scope: int, name: str) -> int:
        return self.places[self._scope_of(self.places, scope, name), name]

    def find_table(self, scope: int, name: str) -> list[int]:
        names = self.tables[self._scope_of(self.tables, scope, name), name]
        return [self.find(scope, label) for label in names]

    def _scope_of(self, known: dict, scope: int, name: str) -> int:
        while scope >= 0:
            if (scope, name) in known:
                return scope
            scope = self.parents[scope]
        raise Unsupported(f"label {name}")
