"""A GEMM on wgmma that nvcc compiles: right in every layout; and planted bugs surface."""

from __future__ import annotations

import itertools

import pytest
import torch

from cuda_on_cpu import Const, compile_cuda, emulate
from cuda_on_cpu.errors import BarrierDivergence, EmulationError, RegisterRace, SharedRace
from cuda_on_cpu.wgmma_kernels import Variant, translation_unit

SEEDS = range(4)
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
ROWS, DEPTH = 128, 192
STAGES = 2 * (128 * 128 + 64 * 128)

VARIANTS = [
    Variant(
        f"gemm_{swizzle}_{'mn' if a else 'k'}_{'mn' if b else 'k'}_{dtype}", swizzle, a, b, dtype
    )
    for swizzle, a, b in itertools.product((0, 32, 64, 128), (False, True), (False, True))
    for dtype in (("bf16", "f16") if swizzle == 128 else ("bf16",))
]


def run(ptx, variant, seed, on_gpu=False):
    g = torch.Generator().manual_seed(1)
    dtype = DTYPES[variant.dtype]
    a, b = (torch.randn(shape, generator=g).to(dtype) for shape in ((ROWS, DEPTH), (DEPTH, 64)))
    c = torch.full((ROWS, 64), float("nan"))
    stored_a = (a.T if variant.a_mn else a).contiguous()
    stored_b = (b if variant.b_mn else b.T).contiguous()
    kernel = emulate(ptx, variant.name)
    args = Const(stored_a), Const(stored_b), c, ROWS, DEPTH
    report = kernel[1, 256, STAGES](*args, seed=seed, on_gpu=on_gpu)
    assert report.warnings == []
    assert report.counts["tensor_flops"] == 2 * ROWS * 64 * DEPTH
    return c, (a.double() @ b.double()).float()


@pytest.fixture(scope="module")
def ptx():
    return compile_cuda(translation_unit([v.source() for v in VARIANTS]), "sm_90a")


@pytest.mark.parametrize(
    ("variant", "seed"),
    [
        (variant, seed)
        for i, variant in enumerate(VARIANTS)
        for seed in (SEEDS if variant.a_mn == variant.b_mn else [i % 4])
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_every_layout(variant, seed, ptx):
    c, want = run(ptx, variant, seed, on_gpu=1e-4)
    torch.testing.assert_close(c, want, rtol=1e-5, atol=1e-5)


K_MAJOR, MIXED = Variant("base"), Variant("base", a_mn=True, b_mn=True)
PLAIN, NARROW = Variant("base", swizzle=0), Variant("base", swizzle=64, b_mn=True)
FENCE = 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");'
COMMIT = 'asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");'
WAIT_1 = 'asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");'
WAIT_0 = 'asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");'
WRONG = None  # no error, but a wrong result
START = "float d[32];"
SETMAXNREG = 'asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");'
MULTIPLY = "multiply(d, operand"
STRIDE = "16, 8 * SPAN);"

# Of each: the kernel, what is replaced by what, and the error.
BUGS = {
    "no_wgmma_fence": (K_MAJOR, FENCE, "", RegisterRace),
    "no_final_wait": (K_MAJOR, WAIT_0, "", RegisterRace),
    "final_wait_off_by_one": (K_MAJOR, WAIT_0, WAIT_1, RegisterRace),
    "no_commit": (K_MAJOR, COMMIT, "", (RegisterRace, SharedRace)),
    "refill_before_the_wait": (K_MAJOR, WAIT_1, WAIT_1.replace("1", "2"), SharedRace),
    "no_barrier_before": (K_MAJOR, "__syncthreads();\n    const", "const", SharedRace),
    "no_barrier_after": (K_MAJOR, "free\n    __syncthreads();", "free\n", SharedRace),
    "accumulators_read_early": (K_MAJOR, WAIT_1, "d[3] += 1; " + WAIT_1, RegisterRace),
    "wrong_swizzle": (K_MAJOR, "? 1 :", "? 2 :", WRONG),
    "swizzle_not_stored": (K_MAJOR, "at ^ ((at >> 7 & (SPAN / 16 - 1)) << 4)", "at", WRONG),
    "wrong_stride": (K_MAJOR, STRIDE, STRIDE.replace("8", "4"), WRONG),
    "wrong_leading": (PLAIN, "return descriptor(tile + k * 2 * ROWS * 16, ROWS * 16, 128);\n}",
                      "return descriptor(tile + k * 2 * ROWS * 16, ROWS * 8, 128);\n}", WRONG),
    "swapped_strides": (MIXED, "64 * SPAN, 8 * SPAN", "8 * SPAN, 64 * SPAN", SharedRace),
    "leading_of_a_wider_tile": (NARROW, "64 * SPAN, 8 * SPAN", "32 * SPAN, 8 * SPAN", WRONG),
    "wrong_step_in_k": (K_MAJOR, "k * 32 % SPAN, 16", "k * 16 % SPAN, 16", WRONG),
    "wrong_rows_in_the_epilogue": (K_MAJOR, "i / 2 % 2 * 8", "i / 2 % 2", WRONG),
    "wrong_columns_in_the_epilogue": (
        K_MAJOR, "lane % 4 * 2 + i % 2", "lane % 4 + i % 2 * 4", WRONG),
    "wrong_transposition": (MIXED, '"n"(A_MN), "n"(B_MN)', '"n"(A_MN), "n"(!B_MN)', SharedRace),
    "transposed_b_only_in_memory": (NARROW, '"n"(B_MN)', '"n"(0)', WRONG),
    "f16_opcode_on_bf16": (K_MAJOR, "f32.bf16.bf16", "f32.f16.f16", WRONG),
    "a_of_the_other_group": (K_MAJOR, "at + group * TILE_A / 2", "at", WRONG),
    "first_product_forgotten": (K_MAJOR, "%33, 1, 1, 1,", "%33, 0, 1, 1,", WRONG),
    "a_warp_stays_away": (
        K_MAJOR, MULTIPLY, "if (threadIdx.x / 32 != 6) " + MULTIPLY, BarrierDivergence),
    "an_exited_warp": (
        K_MAJOR, START, "if (threadIdx.x < 32) return; " + START, BarrierDivergence),
    "setmaxnreg_in_one_warp": (
        K_MAJOR, START, f"if (threadIdx.x < 32) {SETMAXNREG} {START}", BarrierDivergence),
}  # fmt: skip


def mutant(name):
    base, old, new, _ = BUGS[name]
    source = base.source()
    assert source.count(old) == 1, name
    return source.replace(old, new).replace("base", name)


@pytest.fixture(scope="module")
def mutants():
    return compile_cuda(translation_unit([mutant(name) for name in BUGS]), "sm_90a")


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug(name, mutants):
    base, _, _, expected = BUGS[name]
    variant = Variant(name, base.swizzle, base.a_mn, base.b_mn, base.dtype)
    found = []
    for seed in SEEDS:
        try:
            c, want = run(mutants, variant, seed)
        except EmulationError as raised:
            found.append(type(raised))
        else:
            wrong = not torch.allclose(c, want, rtol=1e-3, atol=1e-3)
            found.append(WRONG if wrong else "nothing")
        if found[-1] in (expected if isinstance(expected, tuple) else (expected,)):
            return
    pytest.fail(f"found {found}, not {expected}")
