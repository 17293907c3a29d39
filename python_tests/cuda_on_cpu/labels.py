"""Where branches, jump tables and calls go, once every instruction has its place."""

from __future__ import annotations

from typing import Any

from .errors import Unsupported


class Labels:
    """Of a Lowering that has emitted all its instructions."""

    entry: Any
    instructions: list[Any]
    labels: dict[tuple[int, str], int]
    tables: dict[tuple[int, str], list[str]]
    parents: dict[int, int]
    entries: dict[str, int]
    calls: dict[str, set[str]]

    def refuse_recursion(self) -> None:
        """A function has its registers once."""

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise Unsupported(f"recursion of {name}")
            for callee in self.calls.get(name, ()):
                visit(callee, (*path, name))

        visit(self.entry.name, ())

    def find_label(self, scope: int, name: str) -> int:
        while scope >= 0:
            if (scope, name) in self.labels:
                return self.labels[scope, name]
            scope = self.parents[scope]
        raise Unsupported(f"label {name}")

    def resolve(self) -> None:
        self.targets = []
        for instruction in self.instructions:
            target = -1
            if instruction.target is not None and instruction.target in self.entries:
                target = self.entries[instruction.target]
            elif instruction.target is not None and instruction.target.startswith("@table "):
                table = instruction.target.split()[1]
                names = self.find_table(instruction.scope, table)
                instruction.operands += [self.find_label(instruction.scope, n) for n in names]
            elif instruction.target is not None:
                target = self.find_label(instruction.scope, instruction.target)
            self.targets.append(target)

    def find_table(self, scope: int, name: str) -> list[str]:
        while scope >= 0:
            if (scope, name) in self.tables:
                return self.tables[scope, name]
            scope = self.parents[scope]
        raise Unsupported(f"branch targets {name}")
