"""Arguments of a launch as the bytes of its parameters."""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

import torch

from .errors import BadLaunch
from .parse import Variable
from .structs import Buffer
from .tensor_map import TensorMap

FLOATS = {"f32": "<f", "f64": "<d"}


class Const(NamedTuple):
    """An input that the kernel must not write."""

    tensor: torch.Tensor


class Empty:
    """Memory that holds nothing yet: reading what no launch with this object has written warns."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
        self.written = ctypes.create_string_buffer(max(1, tensor.untyped_storage().nbytes()))


def pack(variable: Variable, value, buffers: list[Buffer]) -> bytes:
    """The bytes of one parameter; a tensor's memory joins ``buffers``.

    Raises:
        BadLaunch: the value is not one that the parameter's type can hold.
    """
    if isinstance(value, Const):
        return _pointer(variable, value.tensor, True, buffers)
    if isinstance(value, Empty):
        return _pointer(variable, value.tensor, False, buffers, ctypes.addressof(value.written))
    if isinstance(value, torch.Tensor):
        return _pointer(variable, value, False, buffers)
    if isinstance(value, TensorMap) and variable.size == 128:
        for tensor in value.tensors:
            add_buffer(tensor, buffers)
        return value.data
    if value is None and variable.size == 8:
        return bytes(8)
    if isinstance(value, bytes) and len(value) == variable.size:
        return value
    element = variable.element
    if isinstance(value, int | float) and element in FLOATS:
        return struct.pack(FLOATS[element], value)
    if isinstance(value, float) and element in ("b32", "b64"):  # which may hold a float
        return struct.pack({"b32": "<f", "b64": "<d"}[element], value)
    if isinstance(value, int) and -(256**variable.size) // 2 <= value < 256**variable.size:
        return (value & (256**variable.size - 1)).to_bytes(variable.size, "little")
    raise BadLaunch(f"{variable.name} is .{element} of {variable.size} bytes, got {value!r}")


def _pointer(
    variable: Variable,
    tensor: torch.Tensor,
    read_only: bool,
    buffers: list[Buffer],
    written: int | None = None,
) -> bytes:
    if variable.size != 8 or variable.element in FLOATS or tensor.device.type != "cpu":
        where = f"a tensor on {tensor.device}"
        raise BadLaunch(f"{variable.name} is .{variable.element}, got {where}")
    add_buffer(Const(tensor) if read_only else tensor, buffers, written)
    return struct.pack("<Q", tensor.data_ptr())


def add_buffer(
    value: torch.Tensor | Const, buffers: list[Buffer], written: int | None = None
) -> None:
    """Memory that the kernel may touch. ``written``: where it is noted which bytes have been."""
    read_only = isinstance(value, Const)
    storage = (value.tensor if read_only else value).untyped_storage()
    extent = Buffer(storage.data_ptr(), storage.nbytes(), read_only)
    extent.written = written
    # The same memory given twice, once as const: writing through the other name is right.
    same = [b for b in buffers if b.base == extent.base and b.size == extent.size]
    for other in same:
        other.read_only = other.read_only and read_only
        other.written = other.written or written
    if not same and extent.size:
        buffers.append(extent)
