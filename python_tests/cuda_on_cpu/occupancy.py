"""Registers of a kernel, and how many of its blocks a multiprocessor holds at once."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import BadLaunch
from .limits import limits_of
from .toolkit import assemble, find_tool

WARP = 32
# Registers are given to warps in units, by four schedulers of a quarter each.
REGISTER_UNIT, SCHEDULERS = 256, 4


class Resources(NamedTuple):
    """What ptxas gives a kernel. Bytes, and registers of a thread."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int


def resources(ptx: str, name: str, arch: str) -> Resources:
    """What ptxas says of a kernel that it assembles for ``arch``; cached by content.

    Raises:
        RuntimeError: if there is no ptxas, or it refuses the PTX.
    """
    _, said = assemble(ptx, arch)
    found = re.search(
        rf"Function properties for {re.escape(name)}\s+(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads\s+.*?Used (\d+) registers([^\n]*)",
        said,
        re.DOTALL,
    )
    if found is None:
        raise ValueError(f"ptxas says nothing of {name}")
    stack, stores, loads, registers = (int(found[k]) for k in range(1, 5))
    shared = re.search(r"(\d+) bytes smem", found[5])
    return Resources(registers, stores, loads, stack, int(shared[1]) if shared else 0)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _blocks_by_registers(registers: int, warps: int, all_registers: int) -> int:
    per_warp = _rounded(registers * WARP, REGISTER_UNIT)
    return all_registers // SCHEDULERS // per_warp * SCHEDULERS // warps


def occupancy(arch: str, threads: int, registers: int, shared: int) -> int:
    """Blocks of ``threads`` that one multiprocessor holds at once; 0: not even one.

    ``registers``: of a thread; ``shared``: bytes of a block, static plus dynamic.
    """
    limits = limits_of(arch)
    warps = -(-threads // WARP)
    if not 0 < threads <= limits.threads or shared > limits.shared:
        return 0
    if registers > limits.registers_per_thread:
        return 0
    blocks = [
        limits.blocks_per_multiprocessor,
        limits.threads_per_multiprocessor // WARP // warps,
    ]
    if registers:
        blocks.append(_blocks_by_registers(registers, warps, limits.registers))
    taken = _rounded(shared + limits.reserved_shared, limits.shared_unit)
    if taken:
        blocks.append(limits.shared_per_multiprocessor // taken)
    return min(blocks)


def check_registers(ptx: str, name: str, target: str, directives: str, threads: int) -> None:
    """Raises BadLaunch for a block whose threads want more registers than there are.

    ptxas is asked only where it can be so: a thread has at most 255, and fewer where the kernel
    declares how many threads its blocks have. Where there is no ptxas nobody is asked.
    """
    limits = limits_of(target)
    warps = -(-threads // WARP)
    if _blocks_by_registers(limits.registers_per_thread, warps, limits.registers):
        return
    if re.search(r"\.(maxntid|reqntid)\s", directives) or find_tool("ptxas") is None:
        return
    registers = resources(ptx, name, target).registers
    if not _blocks_by_registers(registers, warps, limits.registers):
        raise BadLaunch(
            f"{threads} threads of {registers} registers; {target} has {limits.registers} for a "
            f"block and {limits.registers_per_thread} for a thread"
        )
