"""Python functions in programs that XLA compiles for the CPU, by its foreign function interface.

``jax.pure_callback`` puts its arguments on a JAX device before it calls: that waits for a thread of
XLA's pool while the callback itself holds one, so on a single core, or with as many callbacks as
cores, both wait for ever. Here arguments are read, and results written, where XLA keeps them.

The structures are those of ``xla/ffi/api/c_api.h``, which comes with JAX.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import jax
import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]

_TARGET = "capmoe_kernels"
_FUNCTIONS: dict[str, Function] = {}
_VERSION = (0, 1)  # of the interface: any later 0.x takes handlers of this one
_METADATA, _INVALID_ARGUMENT = 1, 3
_DTYPES = {
    1: torch.bool,
    4: torch.int32,
    5: torch.int64,
    10: torch.float16,
    11: torch.float32,
    16: torch.bfloat16,
}


def call(
    key: str, function: Function, results: Sequence[jax.ShapeDtypeStruct], operands: Sequence[Any]
) -> Sequence[jax.Array]:
    """``function`` of the operands as torch tensors, at each run of the program being traced.

    Args:
        key: says all that ``function`` depends on but its operands: a compiled program finds its
            function by it, also a program that JAX kept from another process.
        function: returns tensors of ``results``' shapes and dtypes; must not write its operands.
    """
    _register()
    _FUNCTIONS[key] = function
    foreign = jax.ffi.ffi_call(_TARGET, tuple(results), vmap_method="sequential")
    out: Sequence[jax.Array] = foreign(*operands, key=key)
    return out


@functools.cache
def _register() -> None:
    capsule = jax.ffi.pycapsule(_HANDLER)  # type: ignore[no-untyped-call]
    jax.ffi.register_ffi_target(_TARGET, capsule, platform="cpu")


class _Version(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("major", c_int),
        ("minor", c_int),
    )


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32))


class _Extension(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    )


class _ErrorArguments(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("message", c_char_p),
        ("code", c_int),
    )


class _Api(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("create_error", ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))),
    )


class _Buffer(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )


class _Buffers(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("items", POINTER(POINTER(_Buffer))),
    )


class _Text(Structure):
    _fields_ = (("start", c_void_p), ("size", c_size_t))


class _Attributes(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("names", c_void_p),
        ("items", POINTER(POINTER(_Text))),
    )


class _Frame(Structure):
    """One call. What newer versions append is not looked at."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("operands", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


def _handle(pointer: Any) -> int | None:
    frame = pointer.contents
    if frame.extension and frame.extension.contents.type == _METADATA:
        version = frame.extension.contents.metadata.contents.version
        version.major, version.minor = _VERSION
        return None
    try:
        _run(frame)
    except BaseException as error:  # it must not pass through XLA, which would lose it
        return _error(frame, f"{type(error).__name__}: {error}")
    return None


_HANDLER = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))(_handle)  # lives as long as the process


def _run(frame: _Frame) -> None:
    text = frame.attributes.items[0].contents  # the only attribute
    key = ctypes.string_at(text.start, text.size).decode()
    if key not in _FUNCTIONS:
        raise RuntimeError(f"this process never traced the call that the program makes: {key}")
    made = _FUNCTIONS[key](*_tensors(frame.operands))
    for place, result in zip(_tensors(frame.results), made, strict=True):
        if place.shape != result.shape or place.dtype != result.dtype:
            raise RuntimeError(f"{key} gave {_kind_of(result)} for {_kind_of(place)}")
        place.copy_(result)


def _kind_of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _tensors(buffers: _Buffers) -> list[Tensor]:
    return [_tensor(buffers.items[i].contents) for i in range(buffers.size)]


def _tensor(buffer: _Buffer) -> Tensor:
    """XLA's memory as a tensor, which is good until the call returns."""
    shape, dtype = buffer.dims[: buffer.rank], _DTYPES[buffer.dtype]
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(buffer.data)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _error(frame: _Frame, message: str) -> int | None:
    size = ctypes.sizeof(_ErrorArguments)
    arguments = _ErrorArguments(size, None, message.encode(), _INVALID_ARGUMENT)
    created: int | None = frame.api.contents.create_error(ctypes.byref(arguments))
    return created
