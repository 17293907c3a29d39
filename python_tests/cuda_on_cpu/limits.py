"""What an architecture allows a launch."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import BadLaunch, Unsupported


class Limits(NamedTuple):
    """What one block may have, and what a multiprocessor has for all. Shared memory in bytes,
    static plus dynamic; each block costs ``reserved_shared`` on top."""

    shared: int
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    reserved_shared: int = 1024
    shared_unit: int = 128
    static_shared: int = 48 * 1024
    threads: int = 1024
    registers: int = 64 * 1024  # of a multiprocessor, and of a block
    registers_per_thread: int = 255


# CUDA C++ programming guide, technical specifications per compute capability.
LIMITS = {
    "sm_75": Limits(64 * 1024, 64 * 1024, 1024, 16, reserved_shared=0, shared_unit=256),
    "sm_80": Limits(163 * 1024, 164 * 1024, 2048, 32),
    "sm_86": Limits(99 * 1024, 100 * 1024, 1536, 16),
    "sm_87": Limits(163 * 1024, 164 * 1024, 1536, 16),
    "sm_89": Limits(99 * 1024, 100 * 1024, 1536, 24),
    "sm_90": Limits(227 * 1024, 228 * 1024, 2048, 32),
    "sm_100": Limits(227 * 1024, 228 * 1024, 2048, 32),
    "sm_120": Limits(99 * 1024, 100 * 1024, 1536, 24),
}


MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132}  # of the SXM boards
PORTABLE_CLUSTER = 8


def limits_of(target: str) -> Limits:
    """Of "sm_80", "sm_90a" and so on."""
    limits = LIMITS.get(target.rstrip("af"))
    if limits is None:
        raise Unsupported(f"the limits of {target} are not known")
    return limits


def check_cooperative(target, grid, block, shared) -> None:
    """Raises BadLaunch for a cooperative launch whose blocks cannot all be resident."""
    if target.rstrip("af") not in MULTIPROCESSORS:
        raise Unsupported(f"how many blocks {target} holds is not known")
    limits, count = limits_of(target), MULTIPROCESSORS[target.rstrip("af")]
    whole_warps = -(-block[0] * block[1] * block[2] // 32) * 32
    each = min(
        limits.blocks_per_multiprocessor,
        limits.threads_per_multiprocessor // whole_warps,
        limits.shared_per_multiprocessor // (shared + limits.reserved_shared),
    )
    wanted = grid[0] * grid[1] * grid[2]
    if wanted > each * count:
        raise BadLaunch(
            f"a cooperative launch of {wanted} blocks; {count} multiprocessors hold {each} each"
        )


def check_cluster(target, directives, grid, wanted) -> tuple[tuple[int, int, int], bool]:
    """The blocks of a cluster, and whether the launch or the kernel asks for clusters."""
    found = re.search(r"\.reqnctapercluster\s+([\d, ]+)", directives)
    declared = tuple(int(n) for n in found[1].replace(" ", "").split(",") if n) if found else ()
    declared = (*declared, *[1] * (3 - len(declared))) if declared else None
    if wanted and declared and wanted != declared:
        raise BadLaunch(f"clusters of {wanted}; the kernel declares {declared}")
    size = wanted or declared
    if size is None:
        return (1, 1, 1), ".explicitcluster" in directives
    blocks = size[0] * size[1] * size[2]
    at_most = re.search(r"\.maxclusterrank\s+(\d+)", directives)
    limit = min(PORTABLE_CLUSTER, int(at_most[1]) if at_most else PORTABLE_CLUSTER)
    if not 1 <= blocks <= limit or (blocks > 1 and int(re.sub(r"\D", "", target)) < 90):
        raise BadLaunch(f"clusters of {blocks} blocks on {target}; at most {limit}, from sm_90 on")
    if any(g % s for g, s in zip(grid, size, strict=True)):
        raise BadLaunch(f"a grid of {grid} is not a multiple of clusters of {size}")
    return size, True


def check_limits(target, directives, grid, block, static, dynamic_shared) -> None:
    """Raises BadLaunch for a launch that the architecture, or the kernel's own bounds, forbid."""
    limits = limits_of(target)
    threads = block[0] * block[1] * block[2]
    if not 0 < threads <= limits.threads or min(block) < 1 or block[2] > 64:
        raise BadLaunch(f"a block of {block} threads; at most {limits.threads}, 64 in z")
    wanted = re.search(r"\.(maxntid|reqntid)\s+([\d, ]+)", directives)
    if wanted:
        declared = [int(n) for n in wanted[2].replace(" ", "").split(",") if n]
        most = declared[0] * (declared[1:] or [1])[0] * (declared[2:] or [1])[0]
        if threads > most or (wanted[1] == "reqntid" and threads != most):
            raise BadLaunch(f"a block of {threads} threads; the kernel declares {wanted[0]}")
    if min(grid) < 1 or grid[0] > 2**31 - 1 or max(grid[1:]) > 65535:
        raise BadLaunch(f"a grid of {grid} blocks; at most 2^31 - 1, 65535 and 65535, at least 1")
    if static > limits.static_shared or static + dynamic_shared > limits.shared:
        raise BadLaunch(
            f"{static} bytes of static and {dynamic_shared} of dynamic shared memory; "
            f"{target} allows {limits.static_shared} and {limits.shared} in all"
        )
