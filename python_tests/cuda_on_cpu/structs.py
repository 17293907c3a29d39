"""The structs of core/program.h."""

from __future__ import annotations

import ctypes


class Inst(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("handler", "guard", "negate", "operands", "count", "target")
        ),
        ("imm", ctypes.c_int64 * 6),
    )


class Init(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_int32), ("kind", ctypes.c_int32), ("value", ctypes.c_uint64))


class Buffer(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("read_only", ctypes.c_int32),
        ("pad", ctypes.c_int32),
    )
    # Where a byte per byte says whether it has been written: a read before that warns.
    written: int | None = None


class Program(ctypes.Structure):
    _fields_ = (
        ("insts", ctypes.POINTER(Inst)),
        ("num_insts", ctypes.c_int64),
        ("pool", ctypes.POINTER(ctypes.c_int32)),
        ("inits", ctypes.POINTER(Init)),
        ("num_inits", ctypes.c_int64),
        ("register_bytes", ctypes.c_int64),
        ("static_shared", ctypes.c_int64),
        ("local_bytes", ctypes.c_int64),
    )


class Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_int64),
        ("buffers", ctypes.POINTER(Buffer)),
        ("num_buffers", ctypes.c_int64),
        ("params", ctypes.c_char_p),
        ("param_bytes", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("resident", ctypes.c_int64),
        ("max_steps", ctypes.c_int64),
        ("executed", ctypes.POINTER(ctypes.c_uint64)),
        ("written", ctypes.POINTER(ctypes.c_void_p)),
        ("cluster", ctypes.c_uint32 * 3),
        ("explicit_cluster", ctypes.c_uint32),
        ("workspace", ctypes.c_uint64),
    )


class Fault(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("inst", ctypes.c_int32),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_int32),
        ("text", ctypes.c_char * 480),
    )


COUNTS = [
    "warp_instructions",
    "thread_instructions",
    "global_load_requests",
    "global_load_sectors",
    "global_load_bytes",
    "global_store_requests",
    "global_store_sectors",
    "global_store_bytes",
    "shared_requests",
    "shared_wavefronts",
    "barriers",
    "atomics",
    "tensor_flops",
    "bulk_copies",
    "bulk_bytes",
    "prefetches",
]


class Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in COUNTS)
