"""Divergence, loops, jump tables and calls."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import Hang
from cuda_on_cpu.ptx_snippets import at, launch, module, random_bits, run, zeros

VALUES = random_bits(32, 32, seed=90, extremes=False)
LANES = list(range(32))


def test_branches():
    code = """
        and.b32 t0, tid, 3; setp.eq.u32 p0, t0, 1; @p0 bra ONE; setp.eq.u32 p0, t0, 2; @p0 bra TWO;
        setp.eq.u32 p0, t0, 3; @!p0 bra ZERO; mul.lo.u32 d, a, 7; bra DONE;
        ONE: add.u32 d, a, 1; bra DONE;
        TWO: xor.b32 d, a, 2; bra DONE;
        ZERO: not.b32 d, a;
        DONE: add.u32 d, d, 5;
    """
    cases = [lambda v: ~v, lambda v: v + 1, lambda v: v ^ 2, lambda v: v * 7]
    want = [(cases[i % 4](v) + 5) % 2**32 for i, v in enumerate(VALUES)]
    assert run(code, "u32", ("u32", VALUES)) == want


def test_nested_loops_with_a_trip_count_for_each_lane():
    code = """
        mov.u32 d, 0; mov.u32 t0, 0;
        OUTER: setp.ge.u32 p0, t0, a; @p0 bra END; mov.u32 t1, 0;
        INNER: setp.gt.u32 p1, t1, t0; @p1 bra NEXT; mad.lo.u32 d, t0, t1, d; add.u32 d, d, 1;
        add.u32 t1, t1, 1; setp.ne.u32 p2, t1, b; @p2 bra INNER;
        NEXT: add.u32 t0, t0, 1; bra OUTER;
        END:
    """
    a, b = [i * 5 % 9 for i in LANES], [1 + i % 6 for i in LANES]

    def reference(outer, limit):
        return sum(x * y + 1 for x in range(outer) for y in range(min(x + 1, limit)))

    got = run(code, "u32", ("u32", a), ("u32", b))
    assert got == [reference(x, y) for x, y in zip(a, b, strict=True)]


def test_lanes_leave_a_loop_and_the_kernel_one_by_one():
    """An early return of some lanes leaves the others running and storing."""
    out = zeros()
    body = (
        at("g0", 4)
        + """
        mov.u32 t0, 0; and.b32 t1, tid, 7;
        LOOP: setp.eq.u32 p0, t0, t1; @p0 bra LEAVE; add.u32 t0, t0, 1; bra LOOP;
        LEAVE: setp.lt.u32 p1, t1, 3; @p1 ret; st.global.u32 [x0], t0;
        setp.eq.u32 p2, t1, 5; @p2 exit; add.u32 t0, t0, 10; st.global.u32 [x0], t0;
    """
    )
    launch(body, out)
    want = [0 if i % 8 < 3 else 5 if i % 8 == 5 else i % 8 + 10 for i in LANES]
    assert out.tolist() == want


def test_predicated_instructions_leave_registers_alone():
    code = """
        mov.u32 d, a; and.b32 t0, tid, 1; setp.eq.u32 p0, t0, 0;
        @p0 add.u32 d, d, 1; @!p0 mul.lo.u32 d, d, 3; @p0 mov.b64 x0, 5; @p0 mov.u32 e, 4;
        @!p0 mov.u32 e, 9; @p0 setp.eq.u32 p1, t0, 0; @!p0 setp.eq.u32 p1, t0, 0;
        @p1 add.u32 e, e, 100;
    """
    d, e = run(code, ("u32", "u32"), ("u32", VALUES))
    assert d == [(v + 1 if i % 2 == 0 else v * 3) % 2**32 for i, v in enumerate(VALUES)]
    assert e == [104 if i % 2 == 0 else 9 for i in LANES]


def test_jump_table():
    code = """
        and.b32 t0, a, 3;
        TABLE: .branchtargets ZERO, ONE, TWO, ONE;
        brx.idx t0, TABLE;
        ZERO: mov.u32 d, 10; bra DONE;
        ONE: mov.u32 d, 11; bra DONE;
        TWO: mov.u32 d, 12;
        DONE:
    """
    assert run(code, "u32", ("u32", VALUES)) == [[10, 11, 12, 11][v % 4] for v in VALUES]


FUNCTIONS = """
.func (.param .b32 result) cube(.param .b32 value, .param .b64 scale)
{
    .reg .b32 v<3>;
    .reg .b64 s;
    ld.param.b32 v0, [value];
    ld.param.b64 s, [scale];
    mul.lo.s32 v1, v0, v0;
    mul.lo.s32 v1, v1, v0;
    cvt.u32.u64 v2, s;
    mul.lo.s32 v1, v1, v2;
    st.param.b32 [result], v1;
    ret;
}
.func (.param .b32 result) twice(.param .b32 value)
{
    .reg .b32 v<3>;
    .reg .b64 s;
    .reg .pred odd;
    ld.param.b32 v0, [value];
    and.b32 v1, v0, 1;
    setp.eq.u32 odd, v1, 1;
    @!odd bra EVEN;
    st.param.b32 [result], v0;
    ret;
EVEN:
    mov.u64 s, 2;
    {
        .param .b32 in;
        .param .b64 by;
        .param .b32 out;
        st.param.b32 [in], v0;
        st.param.b64 [by], s;
        call.uni (out), cube, (in, by);
        ld.param.b32 v2, [out];
    }
    st.param.b32 [result], v2;
    ret;
}
"""


@pytest.mark.parametrize("suffix", [".uni", ""])
def test_calls(suffix):
    """A call from within a branch, into a function that branches and calls another."""
    code = f"""
        mov.u32 d, 7; setp.gt.u32 p0, tid, 25; @p0 bra SKIP;
        {{
            .param .b32 in; .param .b32 out;
            st.param.b32 [in], a; call{suffix} (out), twice, (in); ld.param.b32 d, [out];
        }}
        SKIP: add.u32 d, d, 1;
    """
    got = run(code, "u32", ("u32", VALUES), outside=FUNCTIONS)
    want = [7 if i > 25 else v if v % 2 else 2 * v**3 for i, v in enumerate(VALUES)]
    assert got == [(v + 1) % 2**32 for v in want]


def test_struct_arguments_and_results():
    outside = """
    .func (.param .align 8 .b8 result[16]) swap(.param .align 8 .b8 pair[16])
    {
        .reg .b64 v<2>;
        ld.param.b64 v0, [pair];
        ld.param.b64 v1, [pair+8];
        st.param.b64 [result], v1;
        st.param.b64 [result+8], v0;
        ret;
    }
    """
    code = """
        .param .align 8 .b8 in[16]; .param .align 8 .b8 out[16];
        st.param.b64 [in], a; st.param.b64 [in+8], b; call.uni (out), swap, (in);
        ld.param.b64 d, [out]; ld.param.b64 e, [out+8];
    """
    a, b = random_bits(64, 32, seed=91), random_bits(64, 32, seed=92)
    d, e = run(code, ("u64", "u64"), ("u64", a), ("u64", b), outside=outside)
    assert (d, e) == (b, a)


def test_registers_of_inner_scopes_hide_outer_ones():
    code = """
        { .reg .b32 t; mov.u32 t, 5; add.u32 d, a, t; }
        { .reg .b64 t; mov.u64 t, 6; cvt.u32.u64 t0, t; add.u32 d, d, t0; }
        { .reg .b32 t0; mov.u32 t0, 1000; } add.u32 d, d, t0;
    """
    assert run(code, "u32", ("u32", VALUES)) == [(v + 17) % 2**32 for v in VALUES]


@pytest.mark.parametrize("block", [(8, 4, 2), (3, 5, 1), (1, 33, 2)])
def test_grids_and_blocks_of_three_dimensions(block):
    grid = (2, 3, 2)
    out = torch.zeros(12 * block[0] * block[1] * block[2], dtype=torch.int32)
    code = """
        mov.u32 t0, %tid.x; mov.u32 t1, %tid.y; mov.u32 t2, %tid.z;
        mov.u32 t3, %ntid.x; mov.u32 t4, %ntid.y; mov.u32 t5, %ntid.z;
        mad.lo.u32 t6, t2, t4, t1; mad.lo.u32 t6, t6, t3, t0; mul.lo.u32 t7, t3, t4;
        mul.lo.u32 t7, t7, t5; mov.u32 t0, %ctaid.x; mov.u32 t1, %ctaid.y; mov.u32 t2, %ctaid.z;
        mov.u32 t3, %nctaid.x; mov.u32 t4, %nctaid.y; mad.lo.u32 t2, t2, t4, t1;
        mad.lo.u32 t2, t2, t3, t0; mad.lo.u32 t6, t2, t7, t6;
        mad.wide.u32 x0, t6, 4, g0; red.global.add.u32 [x0], t6;
    """
    launch(code, out, grid=grid, block=block)
    assert out.tolist() == list(range(len(out)))


def arrival_order(seed, grid, block):
    """Which warp of which block came first, second, .."""
    out = torch.zeros(grid * block // 32, dtype=torch.int32)
    code = """
        and.b32 t0, tid, 31; setp.ne.u32 p0, t0, 0; @p0 exit; mov.u32 t1, %ctaid.x;
        mov.u32 t2, %ntid.x; mad.lo.u32 t1, t1, t2, tid; shr.u32 t1, t1, 5;
        mad.wide.u32 x0, t1, 4, g0; atom.global.add.u32 t3, [place], 1; st.global.u32 [x0], t3;
    """
    options = {"grid": grid, "block": block, "outside": ".global .u32 place;"}
    launch(code, out, **options, seed=seed, on_gpu=False)  # the order is free
    assert sorted(out.tolist()) == list(range(len(out)))
    return tuple(out.tolist())


@pytest.mark.parametrize(("grid", "block"), [(1, 256), (8, 32)])
def test_a_seed_draws_an_order_and_keeps_it(grid, block):
    orders = [arrival_order(seed, grid, block) for seed in range(12)]
    assert len(set(orders)) > 6
    assert orders == [arrival_order(seed, grid, block) for seed in range(12)]


def test_a_loop_without_an_end_is_stopped():
    loop = "AGAIN: ld.volatile.global.u32 t0, [g0]; setp.eq.u32 p0, t0, 0; @p0 bra AGAIN;"
    kernel = emulate(module(loop))
    kernel[1, 32](zeros() + 1, max_steps=10_000)
    with pytest.raises(Hang):
        kernel[1, 32](zeros(), max_steps=10_000)
