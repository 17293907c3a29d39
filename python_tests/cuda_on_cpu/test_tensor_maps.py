"""Tensor maps and tile copies: every swizzle, one to five dimensions, bounds, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cuda_on_cpu import Const
from cuda_on_cpu.errors import OutOfBounds, ReadOnly
from cuda_on_cpu.tensor_map import tensor_map
from cuda_on_cpu.tensor_snippets import (
    box_indices,
    cut,
    in_shared,
    load_box,
    store_box,
)

SEEDS = range(4)


def tensor(*shape, dtype=torch.int32):
    count = int(np.prod(shape))
    values = torch.arange(1, count + 1) % (200 if dtype.itemsize == 1 else 30000)
    return values.to(dtype).view(*shape)


def as_bits(x):
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize])


def check_load(x, box, at, *, swizzle=0, offset=0, strides=None, seed=0):
    options = {"element_strides": tuple(reversed(strides))} if strides else {}
    want = cut(as_bits(x).numpy(), at, box, strides)
    total = -(-(offset + want.nbytes) // 1024) * 1024
    a_map = tensor_map(Const(x), box, swizzle=swizzle, **options)
    got = load_box(a_map, at, want.nbytes, total, offset, seed)
    assert np.array_equal(got, in_shared(want, swizzle, offset, total))


SWIZZLED = [(0, 32), (32, 8), (64, 16), (128, 32), (128, 16), (64, 8)]


@pytest.mark.parametrize(("swizzle", "columns"), SWIZZLED)
@pytest.mark.parametrize("offset", [0, 128, 384, 512, 1024])
def test_swizzles_follow_the_shared_address(swizzle, columns, offset):
    check_load(tensor(64, 64), (24, columns), (8, 16), swizzle=swizzle, offset=offset)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", SEEDS)
def test_types(dtype, seed):
    columns = 64 // dtype.itemsize
    check_load(tensor(32, 128, dtype=dtype), (8, columns), (16, 8), swizzle=64, seed=seed)


CASES = {
    "1d": ((1000,), (256,), [(0,), (300,), (900,), (-40,), (1000,), (-256,)]),
    "2d": ((50, 60), (16, 32), [(0, 0), (28, 34), (40, 40), (-5, -7), (60, 0), (0, 50), (-3, 48)]),
    "3d": ((7, 20, 32), (2, 4, 16), [(0, 0, 0), (20, 18, 6), (-4, -1, -1), (0, 0, 7)]),
    "4d": ((3, 5, 6, 16), (2, 2, 4, 8), [(8, 2, 3, 1), (12, 4, 4, 2), (-1, -1, -1, -1)]),
    "5d": ((3, 4, 3, 5, 8), (2, 2, 2, 3, 4), [(4, 2, 1, 2, 1), (6, 4, 2, 3, 2), (-2, -1, 0, 0, 0)]),
}
EVERY = [
    pytest.param(shape, box, at, id=f"{name}{at}")
    for name, (shape, box, corners) in CASES.items()
    for at in corners
]


@pytest.mark.parametrize(("shape", "box", "at"), EVERY)
def test_loads_fill_with_zeros_outside(shape, box, at):
    row = box[-1] * 4
    check_load(tensor(*shape), box, at, swizzle={16: 32, 32: 32, 64: 64, 128: 128}.get(row, 0))
    check_load(tensor(*shape), box, at)


def test_element_strides_skip():
    check_load(tensor(40, 6, 32), (12, 6, 16), (8, 0, 5), strides=(3, 2, 1))


def test_rows_of_a_wider_tensor():
    check_load(tensor(30, 64)[2:20, 16:40], (16, 16), (4, 6))


def check_store(x, box, at, *, swizzle=0, offset=0, seed=0, strides=None):
    options = {"element_strides": tuple(reversed(strides))} if strides else {}
    indices = box_indices(x.shape, at, box, strides)
    shape = [len(i) for i in indices]
    tile = (50_000 + np.arange(np.prod(shape), dtype=np.int32)).reshape(shape)
    want = x.clone().numpy()
    for k in np.ndindex(*shape):
        to = tuple(int(i[j]) for i, j in zip(indices, k, strict=True))
        if all(0 <= t < n for t, n in zip(to, x.shape, strict=True)):
            want[to] = tile[k]
    total = -(-(offset + tile.nbytes) // 1024) * 1024
    a_map = tensor_map(x, box, swizzle=swizzle, **options)
    store_box(a_map, at, in_shared(tile, swizzle, offset, total), offset, seed)
    assert np.array_equal(x.numpy(), want)


@pytest.mark.parametrize(("shape", "box", "at"), EVERY)
def test_stores_leave_alone_what_is_outside(shape, box, at):
    row = box[-1] * 4
    check_store(tensor(*shape), box, at, swizzle={16: 32, 32: 32, 64: 64, 128: 128}.get(row, 0))


@pytest.mark.parametrize(("swizzle", "columns"), SWIZZLED)
@pytest.mark.parametrize("seed", SEEDS)
def test_swizzled_stores(swizzle, columns, seed):
    check_store(tensor(64, 64), (24, columns), (8, 16), swizzle=swizzle, offset=384, seed=seed)


def test_stores_with_element_strides():
    check_store(tensor(40, 6, 32), (12, 6, 16), (8, 0, 5), strides=(3, 2, 1))


REDUCE = (
    "@p0 cp.reduce.async.bulk.tensor.{n}d.global.shared::cta.%s.tile.bulk_group [x5, {c}], [t5];"
)


@pytest.mark.parametrize(
    ("operation", "dtype", "reference"),
    [
        ("add", torch.int32, np.add),
        ("max", torch.int32, np.maximum),
        ("min", torch.float16, np.minimum),
        ("add", torch.float32, np.add),
        ("xor", torch.int32, np.bitwise_xor),
    ],
)
def test_reducing_stores(operation, dtype, reference):
    x = tensor(20, 32, dtype=dtype) % 97
    tile = (np.arange(8 * 16) % 53).astype(x.numpy().dtype).reshape(8, 16)
    want = x.clone().numpy()
    want[14:20, 4:20] = reference(want[14:20, 4:20], tile[:6])
    shared = in_shared(tile, 0, 0, 1024)
    store_box(tensor_map(x, (8, 16)), (4, 14), shared, opcode=REDUCE % operation)
    assert np.array_equal(x.numpy(), want)


def test_memory_behind_a_map_is_checked():
    x = tensor(8, 32)
    with pytest.raises(ReadOnly):
        store_box(tensor_map(Const(x), (8, 32)), (0, 0), np.zeros(1024, np.uint8))
    a_map = tensor_map(x, (8, 32))
    a_map.tensors = [tensor(4)]  # which the map is not about
    with pytest.raises(OutOfBounds):
        load_box(a_map, (0, 0), 1024, 1024)


def test_a_map_of_more_rows_than_there_are_is_out_of_bounds():
    x = torch.as_strided(tensor(9, 32)[:8].clone(), (8, 32), (32, 1))
    good = tensor_map(x, (8, 32))
    assert load_box(good, (0, 0), 1024, 1024).any()
    good.data = good.data[:48] + (12).to_bytes(8, "little") + good.data[56:]
    with pytest.raises(OutOfBounds):
        load_box(good, (0, 4), 1024, 1024)
