"""The 128 bytes of a tensor map: their layout, the driver's rules, maps that a kernel makes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.async_snippets import SHARED, expect, start, wait
from cuda_on_cpu.errors import Invalid, Misaligned, SharedRace, Unsupported
from cuda_on_cpu.ptx_snippets import module
from cuda_on_cpu.tensor_map import encode_as_driver, encode_tiled, tensor_map
from cuda_on_cpu.tensor_snippets import LOAD, MAP, load_box, run

GOOD = {
    "dtype": "bf16",
    "address": 0x10000,
    "dims": (100, 50, 7),
    "strides": (256, 25600),
    "box": (64, 16, 2),
    "element_strides": (1, 2, 1),
    "swizzle": 128,
    "l2_promotion": 256,
}


def test_the_layout_is_the_documented_one():
    """As core/tensor_map.h says: what stands in for the driver writes the same."""
    data = encode_tiled(**GOOD)
    assert len(data) == 128
    assert struct.unpack("<Q4Q5QI5H5B6B23s", data) == (
        *(0x10000, 256, 25600, 0, 0, 100, 50, 7, 0, 0, 0x70616D74),
        *(64, 16, 2, 0, 0, 1, 2, 1, 0, 0),
        *(9, 3, 0, 3, 3, 0, bytes(23)),
    )


def test_the_enumerators_of_the_driver():
    """CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, SWIZZLE_128B and L2_PROMOTION_L2_256B of cuda.h."""
    sizes = 0x10000, (100, 50, 7), (256, 25600), (64, 16, 2), (1, 2, 1)
    assert encode_as_driver(9, *sizes, 0, 3, 3, 0) == encode_tiled(**GOOD)
    for wrong in [(13, 0, 3, 3, 0), (9, 0, 4, 3, 0), (9, 1, 3, 3, 0), (9, 0, 3, 3, 1)]:
        with pytest.raises(Unsupported):
            encode_as_driver(wrong[0], *sizes, *wrong[1:])
    with pytest.raises(Invalid, match="L2 promotion"):
        encode_as_driver(9, *sizes, 0, 3, 4, 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"address": 0x10008}, "multiple of 16"),
        ({"box": (257, 16, 2)}, "1 to 256"),
        ({"box": (0, 16, 2)}, "1 to 256"),
        ({"box": (60, 16, 2)}, "multiple of 16"),
        ({"box": (128, 16, 2)}, "256 bytes with a swizzle of 128"),
        ({"swizzle": 64}, "128 bytes with a swizzle of 64"),
        ({"swizzle": 16}, "swizzle of 16"),
        ({"strides": (250, 25600)}, "multiple of 16"),
        ({"strides": (256,)}, "another rank"),
        ({"strides": (256, 2**40)}, "less than 2"),
        ({"dims": (100, 0, 7)}, "1 to 2"),
        ({"dims": ()}, "0 dimensions"),
        ({"element_strides": (1, 9, 1)}, "1 to 8"),
        ({"l2_promotion": 32}, "L2 promotion"),
    ],
)
def test_what_the_driver_refuses(change, text):
    with pytest.raises(Invalid, match=text):
        encode_tiled(**{**GOOD, **change})


@pytest.mark.parametrize("change", [{"interleave": 1}, {"nan_fill": True}, {"dtype": "u4"}])
def test_what_is_not_modelled_is_refused(change):
    with pytest.raises(Unsupported):
        encode_tiled(**{**GOOD, **change})


def grid_of_numbers():
    return torch.arange(64 * 64, dtype=torch.int32).view(64, 64)


def copy_with(code, a_map=None, **options):
    """Loads 4 x 32 numbers with a map in x5, to t5."""
    x = grid_of_numbers()
    body = start() + MAP + "mov.u32 t5, t6;" + code
    body += expect(512) + LOAD.format(n=2, c="{0, 0}") + wait()
    return run(body, x, a_map or tensor_map(x, (4, 32)), **options)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("add.u32 t5, t5, 64;", Misaligned, "destination"),
        ("add.u64 x5, x5, 32;", Misaligned, "aligned to 64"),
        ("mov.u64 x5, g0;", Invalid, "no tensor map"),
        ("cvt.u64.u32 x5, t6; cvta.shared.u64 x5, x5;", Invalid, "global memory"),
    ],
)
def test_misuse(code, error, text):
    copy_with("")
    with pytest.raises(error, match=text):
        copy_with(code)


def test_another_number_of_dimensions():
    with pytest.raises(Invalid, match="2 dimensions with a tensor map of 3"):
        copy_with("", tensor_map(grid_of_numbers().view(8, 8, 64), (2, 2, 32)))


@pytest.mark.parametrize("seed", range(4))
def test_a_map_in_global_memory(seed):
    x = grid_of_numbers()
    memory = torch.zeros(256, dtype=torch.uint8)
    first = -memory.data_ptr() % 64
    data = tensor_map(x, (4, 32)).data
    memory[first : first + 128] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    out = torch.zeros(128, dtype=torch.int32)
    body = start() + "mov.u64 x5, g1; mov.u32 t5, t6;" + expect(512)
    body += LOAD.format(n=2, c="{32, 3}") + wait()
    body += "mad.lo.u32 t1, tid, 4, t6; ld.shared.u32 t2, [t1]; mad.wide.u32 x1, tid, 4, g2;"
    text = module(body + "st.global.u32 [x1], t2;", 3, outside=SHARED, target="sm_90a")
    # A GPU has another layout of the 128 bytes.
    emulate(text)[1, 128](x, memory[first:], out, seed=seed, on_gpu=False)
    assert torch.equal(out.view(4, 32), x[3:7, 32:])


def replaced(fields):
    return "".join(
        f"@p0 tensormap.replace.tile.{name}.shared::cta.b1024.{kind} [t6], {value};"
        for name, kind, value in fields
    )


FIELDS = [
    ("global_address", "b64", "g0"),
    ("rank", "b32", 1),
    ("box_dim", "b32", "0, 32"),
    ("box_dim", "b32", "1, 4"),
    ("global_dim", "b32", "0, 64"),
    ("global_dim", "b32", "1, 64"),
    ("global_stride", "b64", "0, 256"),
    ("element_stride", "b32", "0, 1"),
    ("element_stride", "b32", "1, 1"),
    ("elemtype", "b32", 3),
    ("interleave_layout", "b32", 0),
    ("swizzle_mode", "b32", 3),
    ("fill_mode", "b32", 0),
]
CLEAR = "setp.lt.u32 p1, tid, 32; mad.lo.u32 t1, tid, 4, t6; @p1 st.shared.u32 [t1], 0;"
COPY = (
    "@p1 tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
    "[g1], [t6], 128;"
)


def made(fields, clear=CLEAR):
    x = grid_of_numbers()
    memory = torch.zeros(256, dtype=torch.uint8)
    first = -memory.data_ptr() % 128
    body = start() + clear + "bar.sync 0;" + replaced(fields) + COPY
    text = module(body, 2, outside=SHARED, target="sm_90a")
    emulate(text)[1, 128](x, memory[first:], on_gpu=False)
    return x, memory[first : first + 128].numpy().tobytes()


def test_a_kernel_makes_the_map_that_the_host_makes():
    x, data = made(FIELDS)
    assert data == tensor_map(x, (4, 32), swizzle=128).data


@pytest.mark.parametrize(("ptx", "dtype"), [(6, "f16"), (7, "f32"), (9, "f64"), (10, "bf16")])
def test_ptx_numbers_types_in_its_own_order(ptx, dtype):
    x, data = made([*FIELDS, ("elemtype", "b32", ptx)])
    want = encode_tiled("s32", x.data_ptr(), (64, 64), (256,), (32, 4), swizzle=128)
    number = encode_tiled(dtype, 16, (64,), (), (16,))[99]
    assert data == want[:99] + bytes([number]) + want[100:]


@pytest.mark.parametrize(
    ("field", "error"),
    [
        (("box_dim", "b32", "0, 257"), Invalid),
        (("box_dim", "b32", "5, 16"), Invalid),
        (("global_stride", "b64", "4, 16"), Invalid),
        (("global_stride", "b64", "0, 8"), Misaligned),
        (("element_stride", "b32", "0, 9"), Invalid),
        (("rank", "b32", 5), Invalid),
        (("swizzle_mode", "b32", 4), Unsupported),
        (("interleave_layout", "b32", 1), Unsupported),
        (("fill_mode", "b32", 1), Unsupported),
        (("elemtype", "b32", 13), Unsupported),
    ],
)
def test_what_replace_refuses(field, error):
    with pytest.raises(error):
        made([*FIELDS, field])


def test_replace_wants_zeros_or_a_map():
    with pytest.raises(Invalid, match="neither zero nor"):
        made(FIELDS, CLEAR.replace(", 0;", ", 7;"))
    with pytest.raises(SharedRace):
        made(FIELDS, CLEAR + "setp.gt.u32 p1, tid, 95;")  # another warp copies at once


def test_prefetches_are_counted():
    x = grid_of_numbers()
    body = start() + MAP + "@p0 prefetch.tensormap [x5];"
    body += "@p0 cp.async.bulk.prefetch.tensor.2d.L2.global.tile [x5, {0, 60}];"
    report = run(body, x, tensor_map(x, (8, 32)))
    assert report.counts["prefetches"] == 2


@pytest.mark.parametrize(
    "code",
    [
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[t6], [x5, {t0, t1, t2}], [t7], {h0};",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[t6], [x5, {t0}], [t7];",
        "cp.async.bulk.tensor.2d.global.shared::cta.im2col_no_offs.bulk_group "
        "[x5, {t0, t1}], [t6];",
        "cp.async.bulk.tensor.2d.tile::gather4.shared::cta.global.mbarrier::complete_tx::bytes "
        "[t6], [x5, {t0, t1, t2, t3, t4}], [t7];",
        "tensormap.replace.tile.nonsense.shared::cta.b1024.b32 [t6], 1;",
    ],
)
def test_other_forms_are_refused(code):
    with pytest.raises(Unsupported, match="PTX line"):
        emulate(module(code, outside=SHARED, target="sm_90a"))


def test_the_reference_swizzle_is_a_permutation():
    from cuda_on_cpu.tensor_snippets import swizzle_table

    for span in (0, 32, 64, 128):
        table = swizzle_table(span, 2048)
        assert np.array_equal(np.sort(table), np.arange(2048))
    assert load_box(tensor_map(grid_of_numbers(), (4, 32)), (0, 0), 512, 512).any()
