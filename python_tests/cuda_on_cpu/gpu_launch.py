"""Launches and tensor maps of the CUDA driver, as structures of cuda.h."""

from __future__ import annotations

import ctypes

from .options import Options
from .tensor_map import Layout, TensorMap

CLUSTER_DIMENSION, COOPERATIVE = 4, 2  # CUlaunchAttributeID
MAP_BYTES, MAP_ALIGNMENT = 128, 64


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("value", ctypes.c_uint32 * 16))


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
    )


def attributes_of(wanted: Options) -> list[Attribute]:
    """What a launch asks for beside its grid."""
    out = []
    if wanted.cluster:
        size = (wanted.cluster,) if isinstance(wanted.cluster, int) else tuple(wanted.cluster)
        value = (ctypes.c_uint32 * 16)(*size, *[1] * (3 - len(size)))
        out.append(Attribute(CLUSTER_DIMENSION, 0, value))
    if wanted.cooperative:
        out.append(Attribute(COOPERATIVE, 0, (ctypes.c_uint32 * 16)(1)))
    return out


def start(cuda, function, grid, block, dynamic_shared: int, wanted: Options, pointers) -> int:
    """The driver's answer to a launch on its default stream."""
    asked = attributes_of(wanted)
    array = (Attribute * max(len(asked), 1))(*asked)
    config = Config(grid, block, dynamic_shared, None, ctypes.addressof(array), len(asked))
    return cuda.cuLaunchKernelEx(ctypes.byref(config), function, pointers, None)


def encode(cuda, value: TensorMap, address_there) -> tuple[int, bytes]:
    """The driver's error and its own 128 bytes for a map, of which the emulator's differ.

    ``address_there`` tells where an address of the host's is on the GPU.
    """
    ours = Layout.from_buffer_copy(value.data)
    memory = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
    offset = -ctypes.addressof(memory) % MAP_ALIGNMENT
    rank = ours.rank
    error = cuda.cuTensorMapEncodeTiled(
        ctypes.c_void_p(ctypes.addressof(memory) + offset),
        ctypes.c_uint32(ours.type),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(address_there(ours.address)),
        (ctypes.c_uint64 * rank)(*ours.dims[:rank]),
        (ctypes.c_uint64 * max(rank - 1, 1))(*ours.strides[: rank - 1]),
        (ctypes.c_uint32 * rank)(*ours.box[:rank]),
        (ctypes.c_uint32 * rank)(*ours.element_strides[:rank]),
        *map(ctypes.c_uint32, (ours.interleave, ours.swizzle, ours.l2_promotion, ours.nan_fill)),
    )
    return error, memory.raw[offset : offset + MAP_BYTES]
