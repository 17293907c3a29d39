"""The device that is emulated: the numbers of one product of each architecture."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from ..errors import Unsupported
from ..limits import LIMITS


class DeviceNumbers(ctypes.Structure):
    """``Device`` of cudart/standin.h."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "major",
            "minor",
            "multiprocessors",
            "shared_per_multiprocessor",
            "shared_per_block",
            "threads_per_multiprocessor",
            "blocks_per_multiprocessor",
            "l2_bytes",
        )
    )


class Product(NamedTuple):
    multiprocessors: int
    shared_per_multiprocessor: int
    l2_bytes: int


# NVIDIA's white papers: T4, A100 40 GB SXM, H100 SXM, B200.
PRODUCTS = {
    "sm_75": Product(40, 64 * 1024, 4 * 2**20),
    "sm_80": Product(108, 164 * 1024, 40 * 2**20),
    "sm_90": Product(132, 228 * 1024, 50 * 2**20),
    "sm_100": Product(148, 228 * 1024, 126 * 2**20),
}


def device_numbers(arch: str, multiprocessors: int | None = None) -> DeviceNumbers:
    """What the stand-in says of its device; ``multiprocessors`` may be fewer than the product's."""
    if arch not in PRODUCTS:
        raise Unsupported(f"arch must be one of {', '.join(PRODUCTS)}, got {arch}")
    product, number = PRODUCTS[arch], int(arch[3:])
    return DeviceNumbers(
        number // 10,
        number % 10,
        multiprocessors or product.multiprocessors,
        product.shared_per_multiprocessor,
        LIMITS[arch].shared,
        LIMITS[arch].threads_per_multiprocessor,
        LIMITS[arch].blocks_per_multiprocessor,
        product.l2_bytes,
    )
