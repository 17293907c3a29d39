"""A parsed kernel as the flat program that the core runs: registers are offsets, labels indices.

Device functions are laid out once behind the kernel, with a register for the way back, so there is
no recursion.
"""

from __future__ import annotations

import re

from .build import core
from .errors import Unsupported
from .instructions import Instruction, Target
from .labels import Labels
from .parse import SIZES, Function, Module, Statement, Variable, parse_variable
from .registers import Registers, Scope


class Lowering(Registers):
    """Lowers one entry. ``addresses``: where the module's .global and .const variables are."""

    def __init__(self, module: Module, entry: Function, addresses: dict[str, int]):
        from .rules import RULES

        super().__init__()
        self.rules = RULES
        self.module, self.entry, self.addresses = module, entry, addresses
        self.static_shared = 0
        self.local_bytes = 0
        self.instructions: list[Instruction] = []
        self.labels = Labels()
        self.formals: dict[str, tuple[list[int], list[int]]] = {}
        self.links: dict[str, int] = {}
        self.calls: dict[str, set[str]] = {}
        self.entries: dict[str, int] = {}
        self.function = entry
        self.guard, self.negate = -1, False

        for variable in module.variables.values():
            if variable.space == "shared" and variable.size:
                self.outer.memory[variable.name] = ("shared", self.allocate_shared(variable))
            elif variable.space in ("global", "const"):
                self.outer.memory[variable.name] = (variable.space, addresses[variable.name])
        self.dynamic = [v for v in module.variables.values() if v.space == "shared" and not v.size]
        self.dynamic_alignment = max([16, *(v.alignment for v in self.dynamic)])
        self.param_bytes, self.param_offsets = self.lay_out(entry.params)
        self.place_static(entry)
        self.lower_function(entry)
        pending = list(self.links)
        done: set[str] = set()
        while pending:
            name = pending.pop()
            if name not in done:
                done.add(name)
                self.lower_function(module.functions[name])
                pending += [other for other in self.links if other not in done]
        self.refuse_recursion()
        self.resolve()

    # Memory

    @staticmethod
    def lay_out(variables: list[Variable]) -> tuple[int, list[int]]:
        total, offsets = 0, []
        for variable in variables:
            total = -(-total // variable.alignment) * variable.alignment
            offsets.append(total)
            total += variable.size
        return total, offsets

    def place_static(self, entry: Function) -> None:
        """Dynamic shared memory begins behind all static variables, so these are placed first."""
        self.static_variables: dict[str, int] = {}
        for function in self.module.functions.values():
            if function.is_entry and function is not entry:
                continue
            for statement in function.body:
                if statement.text.startswith(".shared"):
                    variable = parse_variable(statement.text, statement.line)
                    self.static_variables[variable.name] = self.allocate_shared(variable)
        for variable in self.dynamic:
            at = -(-self.static_shared // self.dynamic_alignment) * self.dynamic_alignment
            self.static_shared = at
            self.outer.memory[variable.name] = ("shared", at)

    def allocate_shared(self, variable: Variable) -> int:
        at = -(-self.static_shared // variable.alignment) * variable.alignment
        self.static_shared = at + variable.size
        return at

    def allocate_local(self, variable: Variable) -> int:
        at = -(-self.local_bytes // variable.alignment) * variable.alignment
        self.local_bytes = at + variable.size
        return at

    # Statements

    def emit(
        self, handler: str, operands: list[int], *immediates: int, target: Target | None = None
    ) -> None:
        index = core().emu_handler(handler.encode())
        if index < 0:
            raise self.unsupported(f"no handler {handler}")
        statement = self.statement or Statement("", 0)
        values = [*map(int, immediates), *[0] * (6 - len(immediates))]
        self.instructions.append(
            Instruction(
                index,
                self.guard,
                self.negate,
                operands,
                values,
                statement.line,
                statement.source,
                statement.text,
                self.scopes[-1][0],
                target,
            )
        )

    def enter(self) -> None:
        parent = self.scopes[-1][0] if self.scopes else 0
        self.scopes.append((self.labels.open(parent), Scope()))

    def lower_function(self, function: Function) -> None:
        self.function = function
        self.scopes = []
        self.enter()
        scope = self.scopes[-1][1]
        if function.is_entry:
            for variable, offset in zip(function.params, self.param_offsets, strict=True):
                scope.memory[variable.name] = ("param", offset)
        else:
            self.entries[function.name] = len(self.instructions)
            params, results = self.formals_of(function)
            for variable, at in zip(function.params, params, strict=True):
                scope.memory[variable.name] = ("local", at)
            for variable, at in zip(function.results, results, strict=True):
                scope.memory[variable.name] = ("local", at)
        for statement in function.body:
            self.statement = statement
            self.lower_statement(statement)
        self.statement = None
        self.guard, self.negate = -1, False
        self.leave_function()

    def formals_of(self, function: Function) -> tuple[list[int], list[int]]:
        if function.name not in self.formals:
            self.formals[function.name] = (
                [self.allocate_local(v) for v in function.params],
                [self.allocate_local(v) for v in function.results],
            )
        return self.formals[function.name]

    def leave_function(self) -> None:
        if self.function.is_entry:
            self.emit("exit", [])
        else:
            self.emit("bra.indirect", [self.links[self.function.name]])

    def lower_statement(self, statement: Statement) -> None:
        text = statement.text
        self.guard, self.negate = -1, False
        if text == "{":
            self.enter()
        elif text == "}":
            self.scopes.pop()
        elif text.endswith(":"):
            self.labels.define(self.scopes[-1][0], text[:-1], len(self.instructions))
        elif text.startswith("."):
            self.declare(text, statement.line)
        else:
            guarded = re.match(r"@(!?)([%\w$]+)\s+(.*)", text)
            if guarded:
                found = self.find(guarded[2])
                if found is None:
                    raise self.unsupported(f"predicate {guarded[2]}")
                self.guard, self.negate = found[0], guarded[1] == "!"
                text = guarded[3]
            self.lower_instruction(text)

    def declare(self, text: str, line: int) -> None:
        scope = self.scopes[-1][1]
        if text.startswith(".reg"):
            found = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
            if found is None or found[1] not in SIZES:
                raise self.unsupported("register type")
            for name in found[2].split(","):
                many = re.fullmatch(r"\s*(.+?)<(\d+)>\s*", name)
                names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]
                for one in names:
                    scope.registers[one] = (self.allocate(found[1]), found[1])
        elif text.startswith((".local", ".param")):
            variable = parse_variable(text, line)
            scope.memory[variable.name] = ("local", self.allocate_local(variable))
        elif text.startswith(".shared"):
            variable = parse_variable(text, line)
            scope.memory[variable.name] = ("shared", self.static_variables[variable.name])
        elif text.startswith(".branchtargets"):
            names = [name.strip() for name in text.split(None, 1)[1].split(",")]
            self.labels.define_table(self.scopes[-1][0], names)
        elif not text.startswith(
            (".maxntid", ".reqntid", ".minnctapersm", ".maxnreg", ".noreturn")
        ):
            raise self.unsupported("declaration")

    def lower_instruction(self, text: str) -> None:
        opcode, _, rest = text.partition(" ")
        parts = opcode.split(".")
        rule = self.rules.get(parts[0])
        if rule is None:
            raise self.unsupported(f"instruction {opcode}")
        parts = rule.read(self, parts)
        try:
            rule.lower(self, parts, self.split(rest))
        except (IndexError, KeyError, StopIteration, ValueError) as error:
            raise self.unsupported("operands or modifiers") from error

    # When all is there

    def refuse_recursion(self) -> None:
        """A function has its registers once."""

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise Unsupported(f"recursion of {name}")
            for callee in self.calls.get(name, ()):
                visit(callee, (*path, name))

        visit(self.entry.name, ())

    def resolve(self) -> None:
        for one in self.instructions:
            if one.target is None:
                continue
            kind, name = one.target
            if kind == "function":
                one.place = self.entries[name]
            elif kind == "table":
                one.operands += self.labels.find_table(one.scope, name)
            else:
                one.place = self.labels.find(one.scope, name)
