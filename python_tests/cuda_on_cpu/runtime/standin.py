"""The stand-in for libcudart, loaded and joined to the emulator."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from .. import errors
from .build_cudart import cudart
from .devices import DeviceNumbers, device_numbers
from .launches import Request, launch, static_facts, symbol_address
from .problems import CODES, keep_problem
from .record import options, records
from .tensor_maps import TensorMapRequest, encode


class KernelFacts(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("static_shared", "local_bytes", "const_bytes")),
        *((name, ctypes.c_int32) for name in ("registers", "max_threads", "ptx_version")),
    )


LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Request))
NOTE = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64)
SYMBOL = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p)
FACTS = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(KernelFacts)
)
DEVICE = ctypes.CFUNCTYPE(ctypes.c_void_p)
TENSOR_MAP = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(TensorMapRequest), ctypes.c_void_p)


class Host(ctypes.Structure):
    _fields_ = (
        ("launch", LAUNCH),
        ("note", NOTE),
        ("symbol", SYMBOL),
        ("facts", FACTS),
        ("device", DEVICE),
        ("tensor_map", TENSOR_MAP),
    )


def _code_of(error: BaseException) -> int:
    keep_problem(error)
    return CODES.get(type(error), CODES[errors.EmulationError])


def _launch(request) -> int:
    try:
        launch(load(), request.contents)
    except (
        BaseException
    ) as error:  # nothing may pass through C++: it is raised again after the call
        return _code_of(error)
    return 0


def _symbol(module, name) -> int:
    try:
        return symbol_address(load(), module, name.decode())
    except BaseException as error:
        _code_of(error)
        return 0


def _facts(module, name, with_registers, out) -> int:
    try:
        facts = static_facts(load(), module, name.decode(), bool(with_registers))
    except BaseException as error:
        return _code_of(error)
    for field, value in facts.items():
        setattr(out.contents, field, value)
    return 0


def _note(kind, call, value) -> None:
    kind, call = kind.decode(), call.decode()
    for record in records():
        if kind == "synchronise":
            record.synchronisations.append(call)
        elif kind == "allocate":
            record.allocations.append((call, value))
        elif kind == "free":
            record.frees.append(call)
        elif kind == "copy":
            record.copies.append((call, value))
        elif kind == "fill":
            record.fills.append((call, value))
        elif kind == "unsupported":
            record.unsupported.append(call)
    if kind == "unsupported":
        keep_problem(errors.Unsupported(f"the stand-in for libcudart has no {call}"))
    elif hasattr(errors, kind):
        keep_problem(getattr(errors, kind)(call))


def _tensor_map(request, out) -> int:
    try:
        ctypes.memmove(out, encode(request.contents), 128)
    except BaseException as error:
        _code_of(error)
        return 0
    return 1


_device = DeviceNumbers()


def _device_numbers() -> int:
    current = device_numbers(options().arch, options().multiprocessors)
    ctypes.pointer(_device)[0] = current
    return ctypes.addressof(_device)


_host = Host(
    LAUNCH(_launch),
    NOTE(_note),
    SYMBOL(_symbol),
    FACTS(_facts),
    DEVICE(_device_numbers),
    TENSOR_MAP(_tensor_map),
)


@functools.cache
def load() -> ctypes.CDLL:
    """The library, compiled where its sources have changed."""
    library = ctypes.CDLL(str(cudart()), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)
    library.standin_buffers.restype = ctypes.c_uint64
    library.standin_add_tensor.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
    library.standin_drop_tensor.argtypes = (ctypes.c_uint64,)
    library.standin_images.restype = ctypes.c_uint64
    library.standin_connect(ctypes.byref(_host))
    return library


def library_path() -> Path:
    """Where extensions find it to link with."""
    return cudart()
