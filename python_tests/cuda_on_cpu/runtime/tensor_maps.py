"""What a launcher gives cuTensorMapEncodeTiled, as the tensor map of the emulator."""

from __future__ import annotations

import ctypes

from ..errors import Unsupported
from ..tensor_map import DATA_TYPES, L2_PROMOTIONS, SWIZZLES, encode_tiled


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


TYPES = {number: name for name, (number, _) in DATA_TYPES.items()}
SWIZZLED_BYTES = {number: size for size, number in SWIZZLES.items()}
PROMOTED_BYTES = {number: size for size, number in L2_PROMOTIONS.items()}


def encode(request: TensorMapRequest) -> bytes:
    """The 128 bytes of a tensor map.

    Raises:
        Invalid: where the driver would return CUDA_ERROR_INVALID_VALUE.
        Unsupported: an element, swizzle or promotion that the emulator does not have.
    """
    rank = request.rank
    try:
        options = {
            "swizzle": SWIZZLED_BYTES[request.swizzle],
            "l2_promotion": PROMOTED_BYTES[request.l2_promotion],
        }
        dtype = TYPES[request.type]
    except KeyError as error:
        raise Unsupported(f"cuTensorMapEncodeTiled with {error} of an enum") from None
    return encode_tiled(
        dtype,
        request.address,
        tuple(request.dims[:rank]),
        tuple(request.strides[: rank - 1]),
        tuple(request.box[:rank]),
        tuple(request.element_strides[:rank]),
        interleave=request.interleave,
        nan_fill=bool(request.nan_fill),
        **options,
    )
