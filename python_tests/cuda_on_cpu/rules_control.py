"""Rules for branches, calls and what has no effect here."""

from __future__ import annotations

from .instructions import Target
from .lower import Lowering
from .registers import LOCAL
from .rules import rule
from .rules_bulk import prefetch_map


@rule("bra", allow="uni")
def bra(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("bra", [], target=Target("label", operands[0]))


@rule("brx", allow="idx uni")
def brx(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("bra.indirect", [low.value(operands[0], "b32")], target=Target("table", operands[1]))


@rule("ret", "exit", allow="uni")
def ret(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if parts[0] == "exit" or low.function.is_entry:
        low.emit("exit", [])
    else:
        low.leave_function()


@rule("call", allow="uni")
def call(low: Lowering, parts: list[str], operands: list[str]) -> None:
    results = low.split(operands[0][1:-1]) if operands[0].startswith("(") else []
    rest = operands[1:] if operands[0].startswith("(") else operands
    name = rest[0]
    if name in SYSTEM_CALLS and name not in low.module.functions:
        return system_call(low, name, results, low.split(rest[1][1:-1]))
    target = low.module.functions.get(name)
    if target is None or target.is_entry:
        raise low.unsupported(f"call of {name}")
    actual = low.split(rest[1][1:-1]) if len(rest) > 1 else []
    params, outs = low.formals_of(target)
    for variable, formal, given in zip(target.params, params, actual, strict=True):
        copy(low, formal, low.find_memory(given)[1], variable.size)
    low.calls.setdefault(low.function.name, set()).add(name)
    link = low.links.setdefault(name, low.allocate("b32"))
    low.emit("mov.b32", [link, low.constant(len(low.instructions) + 2, "b32")])
    low.emit("bra", [], target=Target("function", name))
    for variable, formal, given in zip(target.results, outs, results, strict=True):
        copy(low, low.find_memory(given)[1], formal, variable.size)


SYSTEM_CALLS = {"vprintf": 2, "__assertfail": 5}  # and how many parameters they take


def system_call(low: Lowering, name: str, results: list[str], actual: list[str]) -> None:
    if len(actual) != SYSTEM_CALLS[name]:
        raise low.unsupported(f"{len(actual)} parameters of {name}")
    places = [low.find_memory(given)[1] for given in [*actual, *results]]
    low.emit(name, [], *places, *[-1] * (3 - len(places)))


def copy(low: Lowering, to: int, source: int, size: int) -> None:
    """Between two places of local memory."""
    scratch = low.allocate("b64")
    for offset in range(0, size, 1 if size % 4 else 4):
        step = 1 if size % 4 else 4
        at, start = low.constant(to + offset, "b64"), low.constant(source + offset, "b64")
        low.emit("ld.param", [start, scratch], LOCAL, step, 1, 0, 1)
        low.emit("st", [at, scratch], LOCAL, step, 1, 0, 1)


@rule("trap", "brkpt")
def trap(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("trap", [])


@rule(
    *("prefetch", "prefetchu", "applypriority", "pmevent"),
    allow="global local L1 L2 mask tensormap param const",
)
def nothing(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """There are no caches, and time is not kept."""
    if parts[-1] == "tensormap":
        return prefetch_map(low, parts, operands)
    low.emit("nop", [])


@rule("createpolicy", allow="fractional range cvt L2")
def createpolicy(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("mov.b64", [low.value(operands[0], "b64"), low.constant(0, "b64")])
