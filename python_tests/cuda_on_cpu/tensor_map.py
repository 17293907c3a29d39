"""Tensor maps: what cuTensorMapEncodeTiled makes, in the layout of core/tensor_map.h."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch

from .errors import Invalid, Unsupported

MAGIC = 0x70616D74

# CUtensorMapDataType, and the bytes of an element.
DATA_TYPES = {
    "u8": (0, 1),
    "u16": (1, 2),
    "u32": (2, 4),
    "s32": (3, 4),
    "u64": (4, 8),
    "s64": (5, 8),
    "f16": (6, 2),
    "f32": (7, 4),
    "f64": (8, 8),
    "bf16": (9, 2),
    "f32.ftz": (10, 4),
    "tf32": (11, 4),
    "tf32.ftz": (12, 4),
}
OF_TORCH = {
    torch.uint8: "u8",
    torch.int8: "u8",
    torch.float8_e4m3fn: "u8",
    torch.float8_e5m2: "u8",
    torch.int16: "u16",
    torch.int32: "s32",
    torch.int64: "s64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # bytes: CUtensorMapSwizzle
L2_PROMOTIONS = {0: 0, 64: 1, 128: 2, 256: 3}


class Layout(ctypes.Structure):
    """struct TensorMap of core/tensor_map.h."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("strides", ctypes.c_uint64 * 4),
        ("dims", ctypes.c_uint64 * 5),
        ("magic", ctypes.c_uint32),
        ("box", ctypes.c_uint16 * 5),
        ("element_strides", ctypes.c_uint8 * 5),
        *(
            (name, ctypes.c_uint8)
            for name in ("type", "rank", "interleave", "swizzle", "l2_promotion", "nan_fill")
        ),
        ("unused", ctypes.c_uint8 * 23),
    )


@dataclass
class TensorMap:
    """The 128 bytes, and the tensors that a launch must know of: an argument of a kernel."""

    data: bytes
    tensors: list = field(default_factory=list)


def _check(good: bool, what: str) -> None:
    if not good:
        raise Invalid(f"cuTensorMapEncodeTiled: {what}")


def _check_sizes(dims, strides, box, element_strides, element: int) -> None:
    rank = len(dims)
    _check(1 <= rank <= 5, f"{rank} dimensions; 1 to 5 are possible")
    lengths = (len(strides), len(box), len(element_strides))
    _check(lengths == (rank - 1, rank, rank), "strides, box or element strides have another rank")
    _check(all(0 < d <= 2**32 for d in dims), f"dimensions {dims}; each must be 1 to 2^32")
    _check(
        all(s % 16 == 0 and 0 <= s < 2**40 for s in strides),
        f"strides of {strides} bytes; each must be a multiple of 16, less than 2^40",
    )
    _check(all(0 < b <= 256 for b in box), f"a box of {box}; each must be 1 to 256")
    _check(all(1 <= s <= 8 for s in element_strides), "element strides must be 1 to 8")
    _check(box[0] * element % 16 == 0, f"rows of {box[0] * element} bytes; not a multiple of 16")


def encode_tiled(
    dtype: str,
    address: int,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    element_strides: tuple[int, ...] | None = None,
    *,
    interleave: int = 0,
    swizzle: int = 0,
    l2_promotion: int = 0,
    nan_fill: bool = False,
) -> bytes:
    """The 128 bytes. The first dimension is the contiguous one.

    ``strides`` are those of the others, in bytes.

    Raises:
        Invalid: where the driver would return CUDA_ERROR_INVALID_VALUE.
        Unsupported: for interleaved layouts and the fill with NaN.
    """
    if interleave or nan_fill:
        raise Unsupported("tensor maps with an interleaved layout or a fill with NaN")
    if dtype not in DATA_TYPES:
        raise Unsupported(f"tensor maps of {dtype}")
    _check(swizzle in SWIZZLES, f"a swizzle of {swizzle} bytes")
    _check(l2_promotion in L2_PROMOTIONS, f"an L2 promotion to {l2_promotion} bytes")
    number, element = DATA_TYPES[dtype]
    element_strides = element_strides or (1,) * len(dims)
    _check_sizes(dims, strides, box, element_strides, element)
    _check(address % 16 == 0 and address > 0, f"the address {address:#x} is not a multiple of 16")
    row = box[0] * element
    _check(not swizzle or row <= swizzle, f"rows of {row} bytes with a swizzle of {swizzle}")
    layout = Layout(address=address, magic=MAGIC, type=number, rank=len(dims))
    layout.swizzle, layout.l2_promotion = SWIZZLES[swizzle], L2_PROMOTIONS[l2_promotion]
    arrays = {"strides": strides, "dims": dims, "box": box, "element_strides": element_strides}
    for name, values in arrays.items():
        getattr(layout, name)[: len(values)] = values
    return bytes(layout)


def encode_as_driver(
    data_type: int,
    address: int,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    element_strides: tuple[int, ...],
    interleave: int,
    swizzle: int,
    l2_promotion: int,
    nan_fill: int,
) -> bytes:
    """The same from the enumerators of cuda.h, for what stands in for cuTensorMapEncodeTiled."""
    types = {number: name for name, (number, _) in DATA_TYPES.items()}
    spans = {number: span for span, number in SWIZZLES.items()}
    promotions = {number: size for size, number in L2_PROMOTIONS.items()}
    if data_type not in types or swizzle not in spans:
        raise Unsupported(f"tensor maps of CUtensorMapDataType {data_type}, swizzle {swizzle}")
    return encode_tiled(
        types[data_type],
        address,
        dims,
        strides,
        box,
        element_strides,
        interleave=interleave,
        swizzle=spans[swizzle],
        l2_promotion=promotions.get(l2_promotion, -1),
        nan_fill=bool(nan_fill),
    )


def tensor_map(tensor: torch.Tensor, box: tuple[int, ...], **options) -> TensorMap:
    """Of a torch tensor, whose last dimension is the contiguous one; ``box`` is in its order.

    ``Const(tensor)`` makes a map that the kernel must not store through.
    """
    inner = getattr(tensor, "tensor", tensor)
    _check(inner.stride(-1) == 1, "the last dimension is not contiguous")
    size = inner.element_size()
    return TensorMap(
        encode_tiled(
            options.pop("dtype", OF_TORCH.get(inner.dtype, str(inner.dtype))),
            inner.data_ptr(),
            tuple(reversed(inner.shape)),
            tuple(s * size for s in reversed(inner.stride()[:-1])),
            tuple(reversed(box)),
            **options,
        ),
        [tensor],
    )
