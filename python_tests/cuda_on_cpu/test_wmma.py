"""nvcuda::wmma, as nvcc compiles it: its fragments are opaque, its results are not."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const, compile_cuda, emulate
from cuda_on_cpu.errors import OutOfBounds, Unsupported
from cuda_on_cpu.ptx_snippets import module

HEAD = """
#include <mma.h>
using namespace nvcuda::wmma;
template <int M, int N, int K, class T, class S, class C, class D, class LA, class LB, layout_t L>
__device__ void product(const S* a, const S* b, const C* c, D* d, int lda, int ldb, int ldc) {
  __shared__ __align__(32) S tile[1024];
  for (int i = threadIdx.x; i < 1024; i += 32) tile[i] = a[i];
  __syncthreads();
  fragment<matrix_a, M, N, K, T, LA> fa;
  fragment<matrix_b, M, N, K, T, LB> fb;
  fragment<accumulator, M, N, K, C> fc;
  fragment<accumulator, M, N, K, D> fd;
  load_matrix_sync(fa, tile, lda);
  load_matrix_sync(fb, b, ldb);
  load_matrix_sync(fc, c, ldc, L);
  for (int i = 0; i < fc.num_elements; ++i) fc.x[i] = fc.x[i] + fc.x[i];
  mma_sync(fd, fa, fb, fc);
  store_matrix_sync(d, fd, ldc, L);
}
"""
ENTRY = """
extern "C" __global__ void %(name)s(const %(s)s* a, const %(s)s* b, const %(c)s* c, %(d)s* d,
                                    int lda, int ldb, int ldc) {
  product<%(m)d, %(n)d, %(k)d, %(t)s, %(s)s, %(c)s, %(d)s, %(la)s, %(lb)s, %(memory)s>(
      a, b, c, d, lda, ldb, ldc);
}
"""
TYPES = {
    "half": ("__half", torch.float16),
    "bf16": ("__nv_bfloat16", torch.bfloat16),
    "tf32": ("precision::tf32", torch.float32),
    "s8": ("signed char", torch.int8),
    "u8": ("unsigned char", torch.uint8),
    "float": ("float", torch.float32),
    "int": ("int", torch.int32),
}
SHAPES = [(16, 16, 16), (32, 8, 16), (8, 32, 16)]
COMBINATIONS = [
    *((kind, "float", "float", shape) for kind in ("half", "bf16") for shape in SHAPES),
    *(
        ("half", c, d, (16, 16, 16))
        for c, d in [("half",) * 2, ("half", "float"), ("float", "half")]
    ),
    ("tf32", "float", "float", (16, 16, 8)),
    *((kind, "int", "int", shape) for kind in ("s8", "u8") for shape in SHAPES),
]


COLUMNS = ["", "a", "b", "abd"]
CASES = [(*case, columns) for case in COMBINATIONS for columns in COLUMNS]


def name_of(kind, c, d, shape, columns):
    return f"k_{kind}_{c}_{d}_{'_'.join(map(str, shape))}_{columns}"


def entry(kind, c, d, shape, columns):
    t = TYPES[kind][0]
    layouts = {x: "col_major" if x in columns else "row_major" for x in "ab"}
    return ENTRY % {
        "name": name_of(kind, c, d, shape, columns),
        **dict(zip("mnk", shape, strict=True)),
        "t": t,
        "s": "float" if kind == "tf32" else t,
        "c": TYPES[c][0],
        "d": TYPES[d][0],
        "la": layouts["a"],
        "lb": layouts["b"],
        "memory": "mem_col_major" if "d" in columns else "mem_row_major",
    }


@pytest.fixture(scope="module")
def ptx():
    """All in one file: the compiler needs its time for the header."""
    return compile_cuda(HEAD + "".join(entry(*case) for case in CASES), "sm_80")


def numbers(kind, shape, generator):
    dtype = TYPES[kind][1]
    low = 0 if kind == "u8" else -8
    return torch.randint(low, 9, shape, generator=generator).to(dtype)


def stored(matrix, by_column, padding):
    """The memory of a matrix, and the distance of its rows or columns."""
    matrix = matrix.T if by_column else matrix
    return torch.nn.functional.pad(matrix, (0, padding)).contiguous(), matrix.shape[1] + padding


@pytest.mark.parametrize(("kind", "c", "d", "shape", "columns"), CASES)
def test_product(kind, c, d, shape, columns, ptx):
    m, n, k = shape
    g = torch.Generator().manual_seed(m + k)
    left, right = numbers(kind, (m, k), g), numbers(kind, (k, n), g)
    before = numbers(c, (m, n), g)
    (a, lda), (b, ldb) = (stored(x, y in columns, 16) for x, y in ((left, "a"), (right, "b")))
    a = torch.nn.functional.pad(a.flatten(), (0, 1024 - a.numel()))
    memory, ldc = stored(before, "d" in columns, 0)
    out = torch.zeros(memory.shape, dtype=TYPES[d][1])
    kernel = emulate(ptx, name_of(kind, c, d, shape, columns))
    kernel[1, 32](Const(a), Const(b), Const(memory), out, lda, ldb, ldc)
    out = out.T if "d" in columns else out
    assert torch.equal(out.double(), left.double() @ right.double() + 2 * before.double())


LOAD = "wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {t0,t1,t2,t3,t4,t5,t6,t7}, [g0], 16;"


def test_a_matrix_outside_its_tensor():
    with pytest.raises(OutOfBounds):
        emulate(module(LOAD))[1, 32](torch.zeros(255, dtype=torch.float16))


@pytest.mark.parametrize(
    "code",
    [
        LOAD.replace("t0,t1,", "t0,"),
        LOAD.replace("f16", "f64"),
        LOAD.replace("m16n16k16", "m16n16k8"),
        LOAD.replace("m16n16k16", "m8n8k32"),
        LOAD.replace("load.a", "store.a"),
        LOAD.replace(".sync.aligned", ""),
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32.satfinite {f0}, {f0}, {f0}, {f0};",
    ],
)
def test_refused(code):
    with pytest.raises(Unsupported):
        emulate(module(code))
