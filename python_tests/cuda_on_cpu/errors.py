"""What the emulator found wrong, one class per kind."""

from __future__ import annotations


class EmulationError(RuntimeError):
    """Something that a GPU would do wrong, or silently; names block, thread and line."""

    output: tuple[str, ...] | list[str] = ()  # what printf had written until then


class OutOfBounds(EmulationError):
    pass


class Misaligned(EmulationError):
    pass


class ReadOnly(EmulationError):
    """A write to an input that the caller declared const."""


class SharedRace(EmulationError):
    pass


class RegisterRace(EmulationError):
    """Registers of a wgmma touched while it is under way, or with no wgmma.fence between."""


class GlobalRace(EmulationError):
    """Blocks that touch the same global memory, one writing, with no atomic between them."""


class BarrierDivergence(EmulationError):
    pass


class Hang(EmulationError):
    pass


class Trap(EmulationError):
    pass


class BadLaunch(EmulationError):
    """More threads, shared memory or blocks than the architecture allows, or wrong arguments."""


class Unsupported(EmulationError):
    """PTX that the emulator does not know: it never guesses."""


class Invalid(EmulationError):
    """An operand that PTX forbids."""


BY_KIND = {
    1: OutOfBounds,
    2: Misaligned,
    3: ReadOnly,
    4: SharedRace,
    5: BarrierDivergence,
    6: Hang,
    7: Trap,
    8: Unsupported,
    9: Invalid,
    10: GlobalRace,
    20: RegisterRace,
}


WARNINGS = ("other", "uninitialised-shared", "uninitialised-global", "shuffle")  # WarningKind


class Finding(str):
    """A warning: its text, and the ``kind`` of what it warns of."""

    kind: str

    def __new__(cls, text: str, kind: int = 0) -> Finding:
        made = super().__new__(cls, text)
        made.kind = WARNINGS[kind]
        return made
