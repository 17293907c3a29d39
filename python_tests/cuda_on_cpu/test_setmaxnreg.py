"""setmaxnreg: registers move from one warpgroup to another by way of the block."""

from __future__ import annotations

import pytest

from cuda_on_cpu import compile_cuda, emulate
from cuda_on_cpu.errors import BadLaunch, BarrierDivergence, Hang, Invalid, Unsupported
from cuda_on_cpu.ptx_snippets import module, zeros


def kernel(body, directives=".reqntid 384 .minnctapersm 1"):
    ptx = module("shr.u32 t1, tid, 7;\nsetp.eq.u32 p0, t1, 0;\n" + body, target="sm_90a")
    return emulate(ptx.replace(")\n{", f")\n{directives}\n{{", 1))


def dec(count):
    return f"setmaxnreg.dec.sync.aligned.u32 {count};\n"


def inc(count):
    return f"setmaxnreg.inc.sync.aligned.u32 {count};\n"


def split(first, others):
    return f"@!p0 bra OTHERS;\n{first}bra DONE;\nOTHERS:\n{others}DONE:\n"


WRITE = "mad.wide.u32 x0, tid, 4, g0;\nst.global.u32 [x0], tid;\n"


def run(*arguments, threads=384, seeds=range(4)):
    for seed in seeds:
        out = zeros(threads)
        kernel(*arguments)[1, threads](out, seed=seed)
        assert out.tolist() == list(range(threads))


def test_a_producer_gives_and_two_consumers_take():
    """65536 / 384 threads leave 168 a thread; 40 + 232 + 232 are three times that."""
    run(split(dec(40), inc(232)) + WRITE)


def test_more_than_the_block_has_is_a_hang_that_says_so():
    for seed in range(4):
        with pytest.raises(Hang, match="waits for 72 more registers per thread, where the block"):
            kernel(split(dec(40), inc(240)))[1, 384](zeros(), seed=seed)


def test_a_maximum_is_a_bound_too():
    run(split(dec(24), inc(120)) + WRITE, ".maxnreg 88")
    with pytest.raises(Hang, match="more registers"):
        run(split(dec(32), inc(120)) + WRITE, ".maxnreg 88")


def test_nothing_is_counted_where_the_kernel_is_not_bounded():
    run(inc(256) + WRITE, ".maxntid 384")


@pytest.mark.parametrize("code", [inc(160), dec(176)])
def test_the_wrong_direction(code):
    with pytest.raises(Invalid, match="from 168"):
        kernel(code)[1, 384](zeros())


@pytest.mark.parametrize(
    "code", [inc(16), inc(264), inc(100), inc(128).replace(".sync.aligned", "")]
)
def test_refused_counts(code):
    with pytest.raises(Unsupported):
        kernel(code)


def test_refused_on_other_targets():
    with pytest.raises(Unsupported, match="sm_90a"):
        emulate(module(dec(40), target="sm_90"))


def test_one_warp_alone():
    alone = "setp.lt.u32 p0, tid, 32;\n" + split(dec(40), "bar.sync 1, 352;\n")
    with pytest.raises(BarrierDivergence, match="waits for the other warps"):
        kernel(alone + "bar.sync 0;\n")[1, 384](zeros())


def test_launch_bounds_of_nvcc():
    source = """
    extern "C" __global__ void __launch_bounds__(384, 1) k(int* out) {
      if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
      } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 COUNT;");
      }
      out[threadIdx.x] = threadIdx.x;
    }"""
    out = zeros(384)
    emulate(compile_cuda(source.replace("COUNT", "232"), "sm_90a"))[1, 384](out)
    assert out.tolist() == list(range(384))
    with pytest.raises(Hang, match="more registers"):
        emulate(compile_cuda(source.replace("COUNT", "240"), "sm_90a"))[1, 384](zeros(384))
    with pytest.raises(BadLaunch):
        emulate(compile_cuda(source.replace("COUNT", "232"), "sm_90a"))[1, 512](zeros(512))
