"""Rules for mbarrier and the fences of the async proxy."""

from __future__ import annotations

from .lower import Lowering
from .registers import CLUSTER, GENERIC, SHARED
from .rules import rule

SPACES = {"shared": SHARED, "shared::cta": SHARED, "shared::cluster": CLUSTER}
HAS_COUNT, EXPECT_TX, DROP, NO_COMPLETE, RELAXED, TEST, PARITY = (1 << i for i in range(7))


def only(low: Lowering, parts: list[str], words: str) -> None:
    """Of the modifiers that the root's rule lets through, those that this form has."""
    for part in parts[1:]:
        if part not in words.split():
            raise low.unsupported(f"modifier .{part} here")


def places(low: Lowering, *operands: str | None) -> tuple[list[int], list[int]]:
    """Address operands as registers, and as the immediates that operand_address reads."""
    registers, immediates = [], [0, 0, 0, 0]
    for k, operand in enumerate(operands):
        if operand is None:
            registers.append(-1)
            continue
        register, offset, wide, _ = low.address(operand)
        registers.append(register)
        immediates[k] = offset
        immediates[3] |= wide << k
    return registers, immediates


def space_of(parts: list[str]) -> int:
    return next((SPACES[part] for part in parts if part in SPACES), GENERIC)


ARRIVAL = "expect_tx noComplete release relaxed cta cluster shared::cluster b64"
FORMS = {
    "init": "init b64",
    "inval": "inval b64",
    "arrive": f"arrive {ARRIVAL}",
    "arrive_drop": f"arrive_drop {ARRIVAL}",
    "expect_tx": "expect_tx relaxed cta cluster shared::cluster b64",
    "complete_tx": "complete_tx relaxed cta cluster shared::cluster b64",
    "test_wait": "test_wait parity acquire relaxed cta cluster b64",
    "try_wait": "try_wait parity acquire relaxed cta cluster b64",
    "pending_count": "pending_count b64",
}


@rule("mbarrier", allow=" ".join({*" ".join(FORMS.values()).split(), *SPACES}))
def mbarrier(low: Lowering, parts: list[str], operands: list[str]) -> None:
    form = parts[1]
    only(low, parts, f"{FORMS[form]} shared shared::cta")
    if parts[-1] != "b64":
        raise low.unsupported("an mbarrier of another type than b64")
    if form == "pending_count":
        registers = [low.value(operands[0], "b32"), low.value(operands[1], "b64")]
        return low.emit("mbarrier.pending_count", registers)
    if form in ("arrive", "arrive_drop"):
        return arrive(low, parts, operands)
    if form in ("test_wait", "try_wait"):
        return wait(low, parts, operands)
    registers, immediates = places(low, operands[0])
    if form != "inval":
        registers.append(low.value(operands[1], "b32"))
    low.emit(f"mbarrier.{form}", registers, *immediates, 0, space_of(parts))


def arrive(low: Lowering, parts: list[str], operands: list[str]) -> None:
    registers, immediates = places(low, operands[1])
    last = low.value(operands[2], "b32") if len(operands) > 2 else -1
    expects, no_complete = "expect_tx" in parts, "noComplete" in parts
    if (expects or no_complete) and last < 0:
        raise low.unsupported("no count")
    if "shared::cluster" in parts and operands[0] != "_":
        raise low.unsupported("a state of an mbarrier of the cluster")
    registers += [low.value(operands[0], "b64"), -1 if expects else last, last if expects else -1]
    flags = DROP * (parts[1] == "arrive_drop") | NO_COMPLETE * no_complete
    flags |= RELAXED * ("relaxed" in parts)
    low.emit("mbarrier.arrive", registers, *immediates, flags, space_of(parts))


def wait(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """A hint of how long to wait, the last operand, says nothing here."""
    registers, immediates = places(low, operands[1])
    parity = "parity" in parts
    registers += [
        low.value(operands[0], "pred"),
        low.value(operands[2], "b32" if parity else "b64"),
    ]
    flags = TEST * (parts[1] == "test_wait") | PARITY * parity | RELAXED * ("relaxed" in parts)
    low.emit("mbarrier.wait", registers, *immediates, flags, space_of(parts))


def arrive_after_copies(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """cp.async.mbarrier.arrive."""
    only(low, parts, "async mbarrier arrive noinc shared shared::cta b64")
    registers, immediates = places(low, operands[0])
    low.emit("cp.async.mbarrier.arrive", registers, *immediates, "noinc" in parts, space_of(parts))


MEMORY_FENCES = "sc acq_rel acquire release cta gpu cluster sys"
TENSOR_MAP_FENCES = "proxy tensormap::generic acquire release cta cluster gpu sys"
ASYNC_FENCES = "proxy async global shared::cta shared::cluster"


@rule("fence", allow=f"{MEMORY_FENCES} {TENSOR_MAP_FENCES} {ASYNC_FENCES} mbarrier_init")
def fence(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """Orders what other threads, and the async proxy, may know; values come in order anyway.

    What orders mbarrier.init is taken as a fence of everything.
    """
    if parts[1:3] == ["proxy", "async"]:
        only(low, parts, ASYNC_FENCES)
        return low.emit("nop" if parts[-1] == "global" else "fence.proxy.async", [])
    if parts[1] == "mbarrier_init":
        only(low, parts, "mbarrier_init release cluster")
        low.emit("fence", [])
    elif parts[1] == "proxy":
        only(low, parts, TENSOR_MAP_FENCES)
        if "tensormap::generic" not in parts:
            raise low.unsupported("proxy")
        low.emit("nop", [])
    else:
        only(low, parts, MEMORY_FENCES)
        low.emit("fence", [], "cta" not in parts)


@rule("membar", allow="cta gl sys")
def membar(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("fence", [], "cta" not in parts)


@rule("nanosleep")
def nanosleep(low: Lowering, parts: list[str], operands: list[str]) -> None:
    low.emit("yield", [])


@rule("griddepcontrol", allow="launch_dependents wait")
def grid_dependency(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """Of programmatic dependent launches. Launches run one after the other here."""
    low.emit("nop", [])
