"""A barrier over all programs of a launch that are resident at once, in memory nobody has zeroed.

``sync`` is two words of 64 bits with any content. Program 0 zeroes the second, where arrivals are
counted, and then says so in the first; the last program to leave takes that back, so that a launch
that is replayed on the same memory finds no word of its own. What is in fresh memory is that word
by chance once in 2**64.
"""

from __future__ import annotations

import triton
import triton.language as tl

OPEN = tl.constexpr(0x6A09E667F3BCC908)


@triton.jit
def open_barrier(sync):
    """Before anything else in the kernel."""
    if (tl.num_programs(0) > 1) & (tl.program_id(0) == 0):
        tl.store(sync + 1, 0)
        tl.debug_barrier()
        tl.atomic_xchg(sync, OPEN, sem="release")


@triton.jit
def grid_barrier(sync, passed):
    """What any program wrote before it, every program sees after it.

    ``passed`` is 0 at the first barrier, and then what the one before has returned.
    """
    # Every thread looks for itself: a scalar atomic would be one block barrier per look.
    tl.debug_barrier()
    target = passed + tl.num_programs(0)
    if tl.num_programs(0) > 1:
        if passed == 0:
            while tl.load(sync, volatile=True) != OPEN:
                pass
            tl.atomic_add(sync, 0, sem="acquire")
            tl.debug_barrier()
        tl.atomic_add(sync + 1, 1, sem="acq_rel")
        while tl.load(sync + 1, volatile=True) < target:
            pass
        tl.atomic_add(sync + 1, 0, sem="acquire")
        tl.debug_barrier()
    return target


@triton.jit
def close_barrier(sync, passed):
    """After the last barrier of a kernel that has at least one."""
    if tl.num_programs(0) > 1:
        last = passed + tl.num_programs(0) - 1
        if tl.atomic_add(sync + 1, 1, sem="acq_rel") == last:
            tl.atomic_xchg(sync, 0)
