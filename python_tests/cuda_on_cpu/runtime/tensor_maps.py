"""What a launcher gives cuTensorMapEncodeTiled, as the tensor map of the emulator."""

from __future__ import annotations

import ctypes

from ..errors import Unsupported


class TensorMapRequest(ctypes.Structure):
    """Of cudart/standin.h."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("dims", ctypes.c_uint64 * 5),
        ("strides", ctypes.c_uint64 * 4),
        ("box", ctypes.c_uint32 * 5),
        ("element_strides", ctypes.c_uint32 * 5),
        *(
            (name, ctypes.c_int32)
            for name in ("type", "rank", "interleave", "swizzle", "l2_promotion", "nan_fill")
        ),
    )


def encode(request: TensorMapRequest) -> bytes:
    """The 128 bytes of a tensor map.

    Raises:
        Unsupported: the emulator has no tensor maps.
    """
    raise Unsupported(f"cuTensorMapEncodeTiled of {request.rank} dimensions")
