"""Loads, stores, address spaces and parameters."""

from __future__ import annotations

import struct

import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.ptx_snippets import at, launch, module, random_bits, run, signed, zeros


def ramp(n=32, dtype=torch.int32):
    return torch.arange(1, n + 1, dtype=dtype)


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16"])
def test_narrow_loads_extend_to_the_register(kind):
    bits = int(kind[1:])
    values = random_bits(bits, 32, seed=60)
    dtype = {8: torch.uint8, 16: torch.int16}[bits]
    data = torch.tensor(values).to(dtype)
    out = zeros()
    body = at("g0", bits // 8) + at("g1", 4, "x1")
    launch(body + f"ld.global.{kind} t0, [x0]; st.global.u32 [x1], t0;", data, out)
    assert out.tolist() == [signed(v, bits) if kind[0] == "s" else v for v in values]


@pytest.mark.parametrize(("kind", "size"), [("b8", 1), ("u16", 2), ("b32", 4)])
def test_narrow_stores_leave_their_neighbours(kind, size):
    data = torch.full((64 * size,), 0x5A, dtype=torch.uint8)
    body = at("g0", 2 * size) + f"mov.u32 t0, 0x04030201; st.global.{kind} [x0], t0;"
    if kind == "u16":
        body = body.replace("st.global.u16 [x0], t0", "cvt.u16.u32 h0, t0; st.global.u16 [x0], h0")
    launch(body, data)
    assert data.tolist() == ([1, 2, 3, 4][:size] + [0x5A] * size) * 32


@pytest.mark.parametrize(
    ("kind", "count"),
    [(k, 2) for k in ("b8", "b16", "b32", "b64", "f32", "f64")]
    + [(k, 4) for k in ("b8", "b16", "b32", "f32")],
)
def test_vectors(kind, count):
    """Each element moves to its own register; they are stored in reverse to see it."""
    size = int(kind[1:]) // 8
    g = torch.Generator().manual_seed(61)
    data = torch.randint(0, 256, (32, count, size), dtype=torch.uint8, generator=g)
    out = torch.zeros_like(data)
    names = [f"r{i}" for i in range(count)]
    body = f".reg .{'b16' if size == 1 else kind} r<{count}>;\n"
    body += at("g0", size * count) + at("g1", size * count, "x1")
    body += f"ld.global.v{count}.{kind} {{{', '.join(names)}}}, [x0];\n"
    body += f"st.global.v{count}.{kind} [x1], {{{', '.join(reversed(names))}}};"
    launch(body, data.view(-1), out.view(-1))
    assert torch.equal(out, data.flip(1))


def test_offsets_and_cache_operators():
    data, out = ramp(64), zeros(32)
    body = at("g0", 4) + at("g1", 4, "x1")
    body += "add.s64 x0, x0, 64; ld.global.nc.L1::no_allocate.b32 t0, [x0+-60];"
    body += "ld.global.cg.u32 t1, [x0+64]; ld.volatile.global.u32 t2, [x0];"
    body += "mad.lo.s32 t0, t1, 1000, t0; add.s32 t0, t0, t2; st.global.wt.u32 [x1], t0;"
    launch(body, data, out)
    assert out.tolist() == [1000 * (i + 33) + (i + 2) + (i + 17) for i in range(32)]


def test_generic_addresses_reach_every_space():
    data, out = ramp(), zeros(96)
    outside = ".shared .align 4 .b8 buffer[128];"
    body = (
        ".local .align 4 .b8 depot[8];\n"
        + at("g0", 4)
        + at("g1", 4, "x1")
        + """
        ld.global.u32 t0, [x0];
        mov.u64 x2, buffer; cvta.shared.u64 x3, x2; mad.wide.u32 x3, tid, 4, x3;
        st.u32 [x3], t0; bar.sync 0;
        xor.b32 t1, tid, 31; mad.wide.u32 x2, t1, 4, x2; ld.shared.u32 t2, [x2];
        st.global.u32 [x1], t2;
        mov.u64 x4, depot; cvta.local.u64 x5, x4;
        st.u32 [x5+4], tid; ld.local.u32 t3, [x4+4]; st.global.u32 [x1+128], t3;
        cvta.to.shared.u64 x3, x3; ld.shared.u32 t4, [x3];
        cvta.global.u64 x0, x0; ld.u32 t5, [x0]; sub.u32 t4, t4, t5;
        st.global.u32 [x1+256], t4;
    """
    )
    launch(body, data, out, outside=outside)
    assert out[:32].tolist() == list(range(32, 0, -1))
    assert out[32:64].tolist() == list(range(32))
    assert out[64:].tolist() == [0] * 32


def test_isspacep():
    out = zeros(128)
    outside = ".shared .align 4 .b8 buffer[128];"
    body = (
        ".local .align 4 .b8 depot[8];\n"
        + at("g0", 16)
        + """
        mov.u64 x1, buffer; cvta.shared.u64 x1, x1; mov.u64 x2, depot; cvta.local.u64 x2, x2;
        isspacep.shared p0, x1; isspacep.global p1, x1; isspacep.local p2, x2;
        isspacep.global p3, x0;
        selp.u32 t0, 1, 0, p0; selp.u32 t1, 1, 0, p1; selp.u32 t2, 1, 0, p2; selp.u32 t3, 1, 0, p3;
        st.global.v4.u32 [x0], {t0, t1, t2, t3};
    """
    )
    launch(body, out, outside=outside)
    assert out.view(-1, 4).tolist() == [[1, 0, 1, 1]] * 32


def test_local_memory_is_private():
    """Every thread fills its array in a dynamic order and reads it back after all others wrote."""
    out = zeros(256)
    body = (
        ".local .align 16 .b8 depot[32];\n"
        + at("g0", 32)
        + """
        mov.u64 x1, depot; mov.u32 t0, 0;
        FILL: xor.b32 t1, t0, tid; and.b32 t1, t1, 7; mad.wide.u32 x2, t1, 4, x1;
        mad.lo.u32 t2, tid, 8, t1; st.local.u32 [x2], t2;
        add.u32 t0, t0, 1; setp.lt.u32 p0, t0, 8; @p0 bra FILL;
        bar.sync 0;
        ld.local.v4.u32 {t0, t1, t2, t3}, [x1]; st.global.v4.u32 [x0], {t0, t1, t2, t3};
        ld.local.v4.u32 {t0, t1, t2, t3}, [x1+16]; st.global.v4.u32 [x0+16], {t0, t1, t2, t3};
    """
    )
    launch(body, out)
    assert out.tolist() == list(range(256))


@pytest.mark.parametrize("space", ["const", "global"])
def test_initialised_arrays(space):
    outside = f"""
    .{space} .align 4 .u32 words[4] = {{11, 22, 0xFFFFFFFF, 44}};
    .{space} .align 4 .f32 floats[2] = {{0f3FC00000, 0fC0000000}};
    .{space} .align 8 .b8 bytes[8] = {{1, 2, 3, 255}};
    """
    body = f"""and.b32 t0, tid, 3; mov.u64 x0, words; mad.wide.u32 x0, t0, 4, x0;
        ld.{space}.u32 t1, [x0]; shr.u32 t0, t0, 1; mov.u64 x0, floats;
        mad.wide.u32 x0, t0, 4, x0; ld.{space}.f32 f0, [x0]; cvt.rzi.s32.f32 t2, f0;
        ld.{space}.u32 t3, [bytes]; ld.{space}.u8 t4, [bytes+5]; add.u32 t3, t3, t4;
        mad.wide.u32 x1, tid, 12, g0; st.global.u32 [x1], t1; st.global.u32 [x1+4], t2;
        st.global.u32 [x1+8], t3;"""
    out = zeros(96)
    launch(body, out, outside=outside)
    words, floats = [11, 22, -1, 44], [1, 1, -2, -2]
    want = [[words[i % 4], floats[i % 4], signed(0xFF030201, 32)] for i in range(32)]
    assert out.view(-1, 3).tolist() == want


def test_zero_initialised_global_variable():
    outside = ".global .align 4 .u32 counter;"
    out = zeros(64)
    body = at("g0", 4) + "atom.global.add.u32 t0, [counter], 1; st.global.u32 [x0], t0;"
    launch(body, out, block=64, outside=outside)
    assert sorted(out.tolist()) == list(range(64))


def test_scalar_parameters():
    params = (
        ".param .s8 a, .param .u16 b, .param .s32 c, .param .u64 d, .param .f32 e, .param .f64 f"
    )
    body = """
        ld.param.s8 t0, [a]; ld.param.u16 t1, [b]; ld.param.s32 t2, [c]; ld.param.u64 x0, [d];
        ld.param.f32 f0, [e]; .reg .f64 y; ld.param.f64 y, [f];
        cvt.s64.s32 x1, t0; st.global.u64 [g0], x1; cvt.u64.u32 x1, t1; st.global.u64 [g0+8], x1;
        cvt.s64.s32 x1, t2; st.global.u64 [g0+16], x1; st.global.u64 [g0+24], x0;
        cvt.f64.f32 y, f0; st.global.f64 [g0+32], y; ld.param.f64 y, [f]; st.global.f64 [g0+40], y;
    """
    out = zeros(6, torch.int64)
    emulate(module(body, 1, params=params))[1, 1](out, -3, 65535, -70000, 2**40 + 1, 1.5, 0.1)
    assert out[:4].tolist() == [-3, 65535, -70000, 2**40 + 1]
    assert out[4:].view(torch.float64).tolist() == [1.5, 0.1]


def test_struct_parameter():
    body = """
        ld.param.u32 t0, [s]; ld.param.u64 x0, [s+8]; ld.param.v2.u32 {t1, t2}, [s+16];
        mov.b64 x2, s; ld.param.s8 t3, [x2+4];
        cvt.u64.u32 x1, t0; st.global.u64 [g0], x1; st.global.u64 [g0+8], x0;
        st.global.v2.u32 [g0+16], {t1, t2}; cvt.s64.s32 x1, t3; st.global.u64 [g0+24], x1;
    """
    out = zeros(4, torch.int64)
    packed = struct.pack("<Ib3xQII", 7, -9, 2**50, 5, 6)
    emulate(module(body, 1, params=".param .align 8 .b8 s[24]"))[1, 1](out, packed)
    assert out.tolist() == [7, 2**50, 5 + (6 << 32), -9]


def test_moves_pack_and_unpack():
    a = random_bits(64, 32, seed=62)
    code = "mov.b64 {t0, t1}, a; mov.b32 {h0, h1}, t0; mov.b32 {h2, h3}, t1;"
    code += "mov.b64 d, {h3, h2, h1, h0};"
    got = run(code, "u64", ("u64", a))
    words = [[v >> 16 * i & 65535 for i in range(4)] for v in a]
    assert got == [w[3] | w[2] << 16 | w[1] << 32 | w[0] << 48 for w in words]
    got = run("mov.b64 {_, d}, a;", "u32", ("u64", a))
    assert got == [v >> 32 for v in a]
