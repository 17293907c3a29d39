"""Tensor copies for the tests, and what they should do, by NumPy."""

from __future__ import annotations

import numpy as np
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.async_snippets import FENCE, SHARED, expect, start, wait, wait_stores
from cuda_on_cpu.ptx_snippets import module

MAP = "mov.b64 x5, map; cvta.param.u64 x5, x5;"
LOAD = (
    "@p0 cp.async.bulk.tensor.{n}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
    "[t5], [x5, {c}], [t7];"
)
STORE = "@p0 cp.async.bulk.tensor.{n}d.global.shared::cta.bulk_group [x5, {c}], [t5];"


def vector(numbers):
    return "{" + ", ".join(map(str, numbers)) + "}"


def words(size, code):
    """``code`` for each of ``size`` bytes: x1 is the word in g0, t1 that in the tile."""
    return f"""mov.u32 t0, tid;
        NEXT: mad.wide.u32 x1, t0, 4, g0; mad.lo.u32 t1, t0, 4, t6; {code}
        add.u32 t0, t0, 128; setp.lt.u32 p2, t0, {size // 4}; @p2 bra NEXT;"""


def run(body, *args, pointers=1, **options):
    params = ".param .align 64 .b8 map[128]"
    kernel = emulate(module(body, pointers, outside=SHARED, params=params, target="sm_90a"))
    return kernel[1, 128](*args, max_steps=1_000_000, **options)


def load_box(a_map, at, size, total, offset=0, seed=0):
    """All ``total`` bytes of the tile, cleared before, after a load of ``size`` bytes to it."""
    out = torch.zeros(total // 4, dtype=torch.int32)
    code = start() + words(total, "st.shared.u32 [t1], 0;") + "bar.sync 0;" + MAP
    copy = LOAD.format(n=len(at), c=vector(at))
    code += f"add.u32 t5, t6, {offset};" + expect(size) + copy + wait()
    dump = words(total, "ld.shared.u32 t2, [t1]; st.global.u32 [x1], t2;").replace("NEXT", "DUMP")
    run(code + dump, out, a_map, seed=seed)
    return out.numpy().view(np.uint8)


def store_box(a_map, at, tile, offset=0, seed=0, opcode=STORE):
    """Stores the bytes of a tile."""
    source = torch.from_numpy(tile.copy().view(np.int32))
    code = start() + words(tile.size, "ld.global.u32 t2, [x1]; st.shared.u32 [t1], t2;")
    code += FENCE + "bar.sync 0;" + MAP + f"add.u32 t5, t6, {offset};"
    code += opcode.format(n=len(at), c=vector(at)) + wait_stores()
    return run(code, source, a_map, seed=seed)


def swizzle_table(span, total):
    """Of each byte of shared memory, counted from 1024-aligned address 0, where a swizzle puts it.

    As the CUDA guide draws it: rows of 128 bytes in chunks of 16; in row r, chunk c changes places
    with the chunk whose number differs from it by the low bits of r: three for 128 bytes, two for
    64, one for 32.
    """
    where = np.arange(total)
    row, chunk, byte = where // 128, where // 16 % 8, where % 16
    return row * 128 + (chunk ^ row % {0: 1, 32: 2, 64: 4, 128: 8}[span]) * 16 + byte


def box_indices(shape, at, box, strides=None):
    """Per dimension (in torch's order), the indices of the tensor that the box covers."""
    strides = strides or (1,) * len(box)
    corner = tuple(reversed(at))
    return [
        start + np.arange(-(-b // s)) * s for start, b, s in zip(corner, box, strides, strict=True)
    ]


def cut(tensor, at, box, strides=None):
    """The box as an array, zeros where it is outside of the tensor."""
    indices = box_indices(tensor.shape, at, box, strides)
    out = np.zeros([len(i) for i in indices], dtype=tensor.dtype)
    for to in np.ndindex(*out.shape):
        source = tuple(int(i[k]) for i, k in zip(indices, to, strict=True))
        if all(0 <= s < n for s, n in zip(source, tensor.shape, strict=True)):
            out[to] = tensor[source]
    return out


def in_shared(box, span, offset, total):
    """The bytes of shared memory that a box becomes."""
    flat = box.reshape(-1).view(np.uint8)
    out = np.zeros(total, dtype=np.uint8)
    out[swizzle_table(span, total)[offset : offset + flat.size]] = flat
    return out
