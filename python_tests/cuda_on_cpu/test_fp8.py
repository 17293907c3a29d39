"""8-bit floats: every value decoded, every f16 encoded, against torch's types; and cvt.pack."""

from __future__ import annotations

import math

import pytest
import torch

from cuda_on_cpu import compile_cuda, emulate
from cuda_on_cpu.errors import Unsupported
from cuda_on_cpu.ptx_snippets import module, random_bits, run, signed, unsigned

TYPES = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}
NAN = 0x7F


def encoded(kind, values, relu=False):
    """torch rounds to nearest; the clamp is .satfinite, and there is one NaN."""
    dtype, largest = TYPES[kind]
    x = values.float().clamp(-largest, largest)
    if relu:
        x = torch.where(x <= 0, 0.0, x)
    bits = x.to(dtype).view(torch.uint8).int()
    return torch.where(values.isnan(), NAN, bits).tolist()


def every_half():
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)


@pytest.mark.parametrize("kind", TYPES)
def test_every_value_decodes(kind):
    bits = list(range(256))
    dtype, _ = TYPES[kind]
    want = torch.tensor(bits, dtype=torch.uint8).view(dtype).half()
    pairs = [b | (255 - b) << 8 for b in bits]
    got = run(f"cvt.rn.f16x2.{kind}x2 d, a;", "f16x2", ("b16", pairs), target="sm_90")
    for place, expect in ((0, want), (1, want.flip(0))):
        assert torch.equal(got[:, place].isnan(), expect.isnan())
        same = got[:, place].view(torch.int16) == expect.view(torch.int16)
        assert (same | expect.isnan()).all()
    got = run(f"cvt.rn.relu.f16x2.{kind}x2 d, a;", "f16x2", ("b16", bits), target="sm_90")
    floats = want.float()
    expect = torch.where(floats <= 0, 0.0, floats)
    assert torch.equal(got[:, 0].float().nan_to_num(-1), expect.nan_to_num(-1))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_every_half_encodes(kind, relu):
    code = f"cvt.rn.satfinite{'.relu' if relu else ''}.{kind}x2.f16x2 d, a;"
    halves = every_half()
    for first in range(0, 65536, 2048):
        pairs = halves[first : first + 2048].reshape(-1, 2)
        want = encoded(kind, pairs, relu)
        got = run(code, "u16", ("f16x2", pairs), target="sm_90")
        assert got == [low | high << 8 for low, high in want]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_floats_encode(kind, relu):
    _, largest = TYPES[kind]
    edges = [0.0, -0.0, math.inf, -math.inf, math.nan, largest, 1.04 * largest, 2 * largest, 1e38]
    edges += [2.0**-20, 2.0**-9, 2.0**-10, 1.5 * 2.0**-10, 1 + 2.0**-4, 1 + 2.0**-4 + 2.0**-20]
    g = torch.Generator().manual_seed(0)
    scale = 2.0 ** torch.randint(-18, 18, (500,), generator=g)
    x = torch.cat(
        [torch.tensor(edges), -torch.tensor(edges), torch.randn(500, generator=g) * scale]
    )
    y = x.roll(7)
    code = f"cvt.rn.satfinite{'.relu' if relu else ''}.{kind}x2.f32 d, a, b;"
    want = zip(encoded(kind, x, relu), encoded(kind, y, relu), strict=True)
    got = run(code, "u16", ("f32", x), ("f32", y), target="sm_90")
    assert got == [high << 8 | low for high, low in want]


@pytest.mark.parametrize(
    ("kind", "largest"),
    [("f16", 65504.0), ("bf16", 3.3895313892515355e38), ("tf32", 2.0**127 * (2 - 2.0**-10))],
)
def test_satfinite_of_wider_types(kind, largest):
    x = torch.tensor([math.inf, -math.inf, 3.4028e38, -3.4028e38, 1.0, math.nan])
    mode = "rna" if kind == "tf32" else "rn"
    out = "f32" if kind == "tf32" else kind
    code = f".reg .b{32 if out == 'f32' else 16} r; cvt.{mode}.satfinite.{kind}.f32 r, a;"
    code += f"mov.b{32 if out == 'f32' else 16} d, r;"
    got = run(code, out, ("f32", x), target="sm_90").double()
    assert got[:5].tolist() == [largest, -largest, largest, -largest, 1.0]
    assert got[5].isnan()


@pytest.mark.parametrize("sign", "us")
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_pack(bits, sign):
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if sign == "s" else (0, (1 << bits) - 1)
    a, b, c = ([signed(v, 32) for v in random_bits(32, 64, seed=s)] for s in (1, 2, 3))
    a = [v if i % 3 else v % 40 - 20 for i, v in enumerate(a)]

    def parts(x, y):
        x, y = (unsigned(min(max(v, low), high), bits) for v in (x, y))
        return x << bits | y

    if bits == 16:
        got = run(f"cvt.pack.sat.{sign}16.s32 d, a, b;", "u32", ("s32", a), ("s32", b))
        assert got == [parts(x, y) for x, y in zip(a, b, strict=True)]
        return
    code = f"cvt.pack.sat.{sign}{bits}.s32.b32 d, a, b, c;"
    got = run(code, "u32", ("s32", a), ("s32", b), ("s32", c))
    want = [unsigned(z << 2 * bits | parts(x, y), 32) for x, y, z in zip(a, b, c, strict=True)]
    assert got == want


@pytest.mark.parametrize(
    "code",
    [
        "cvt.rn.e4m3x2.f32 h0, f0, f1;",
        "cvt.rz.satfinite.e4m3x2.f32 h0, f0, f1;",
        "cvt.rn.satfinite.e4m3x2.f32 h0, f0;",
        "cvt.rn.satfinite.e4m3x2.bf16x2 h0, t0;",
        "cvt.rn.bf16x2.e4m3x2 t0, h0;",
        "cvt.rn.satfinite.e2m1x2.f32 h0, f0, f1;",
        "cvt.rs.satfinite.e4m3x4.f32 t0, {f0, f1, f2, f3}, t1;",
        "cvt.rn.satfinite.f32.f64 f0, x0;",
        "cvt.pack.u8.s32.b32 t0, t1, t2, t3;",
        "cvt.pack.sat.u8.s32 t0, t1, t2;",
        "cvt.pack.sat.u8.u32.b32 t0, t1, t2, t3;",
        "cvt.rn.satfinite.tf32.f32 t0, f0;",
    ],
)
def test_what_there_is_not(code):
    with pytest.raises(Unsupported):
        emulate(module(code, target="sm_90"))


CUDA = """
#include <cuda_fp8.h>
template <class F> __device__ void both(const float2* in, F* pairs, __half2* back) {
  pairs[threadIdx.x] = F(in[threadIdx.x]);
  back[threadIdx.x] = __half2(pairs[threadIdx.x]);
}
extern "C" __global__ void k(const float2* in, __nv_fp8x2_e4m3* a, __half2* a_back,
                             __nv_fp8x2_e5m2* b, __half2* b_back) {
  both(in, a, a_back);
  both(in, b, b_back);
}
"""


def test_the_types_of_cuda():
    """cuda_fp8.h, as nvcc compiles it for sm_90: which half is which."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(64, 2, generator=g) * 2.0 ** torch.randint(-12, 12, (64, 2), generator=g)
    bits = [torch.zeros(64, 2, dtype=torch.uint8) for _ in range(2)]
    back = [torch.zeros(64, 2, dtype=torch.float16) for _ in range(2)]
    emulate(compile_cuda(CUDA, "sm_90"))[1, 64](x, bits[0], back[0], bits[1], back[1])
    for kind, got, wide in zip(TYPES, bits, back, strict=True):
        assert got.tolist() == encoded(kind, x)
        assert torch.equal(wide, got.view(TYPES[kind][0]).half())
