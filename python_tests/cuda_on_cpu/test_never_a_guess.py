"""What is not known, or cannot be meant, is refused: nothing is dropped or converted silently."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import Const, emulate
from cuda_on_cpu.errors import BadLaunch, EmulationError, OutOfBounds, Unsupported
from cuda_on_cpu.ptx_snippets import launch, module, zeros


@pytest.mark.parametrize(
    "code",
    [
        "red.global.min.noftz.f16x2 [g0], t0;",
        "atom.global.max.f32 f0, [g0], f1;",
        "red.async.relaxed.cluster.mbarrier::complete_tx::bytes.add.u32 [t0], t1, [t2];",
        "fence.proxy.alias;",
        "discard.global.L2 [g0], 128;",
        "prmt.b32.f5e t0, t1, t2, t3;",
        "bfe.sat.u32 t0, t1, t2, t3;",
        "set.eq.f16.f16 h0, h1, h2;",
        "vote.all.pred p0, p1;",
        "vadd.s32.s32.s32 t0, t1, t2;",
        "mma.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {f0,f1,f2,f3},"
        " {t0,t1,t2,t3,t4,t5,t6,t7}, {t0,t1,t2,t3}, {f0,f1,f2,f3};",
        "ld.global.b128 x0, [g0];",
        ".reg .b128 q; mov.b128 q, {t0, t1, t2, t3};",
        ".reg .b128 q; ld.global.v2.b128 {q, q}, [g0];",
        ".reg .b128 q; atom.global.add.b128 q, [g0], q;",
        ".reg .b128 q; selp.b128 q, q, q, p0;",
        "ld.global.f32.nonsense f0, [g0];",
        "isspacep.somewhere p0, x0;",
    ],
)
def test_unknown_code_is_refused_with_its_line(code):
    with pytest.raises(Unsupported, match="PTX line"):
        emulate(module(code))


def test_an_architecture_without_known_limits_is_refused():
    with pytest.raises(Unsupported, match="sm_999"):
        launch("st.global.u32 [g0], tid;", zeros(), block=1, target="sm_999")


SCALARS = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out, .param .f32 x, .param .u32 n, .param .b32 either)
{
    .reg .b64 g; .reg .f32 f; .reg .b32 r;
    ld.param.u64 g, [out];
    ld.param.f32 f, [x];
    st.global.f32 [g], f;
    ld.param.u32 r, [n];
    st.global.u32 [g+4], r;
    ld.param.b32 r, [either];
    st.global.u32 [g+8], r;
    ret;
}
"""


def test_numbers_become_what_the_parameter_is():
    out = zeros(3)
    emulate(SCALARS)[1, 1](out, 2, -1, 0.5)
    assert out.view(torch.float32)[0] == 2.0
    assert out[1] == -1
    assert out.view(torch.float32)[2] == 0.5


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((zeros(), 1.0, 2.5, 0), "n is .u32"),
        ((zeros(), 1.0, 2**32, 0), "n is .u32"),
        ((zeros(), 1.0, zeros(), 0), "n is .u32"),
        ((zeros(), 1.0, None, 0), "n is .u32"),
        ((zeros(), zeros(), 1, 0), "x is .f32"),
        ((zeros(), Const(zeros()), 1, 0), "x is .f32"),
        ((zeros(), 1.0, b"12", 0), "n is .u32"),
        ((torch.empty(3, device="meta"), 1.0, 1, 0), "out is .u64"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, name):
    with pytest.raises(BadLaunch, match=name):
        emulate(SCALARS)[1, 1](*arguments)


def test_an_address_whose_end_wraps_around_is_out_of_bounds():
    with pytest.raises(OutOfBounds):
        launch("mov.b64 x0, -4; st.global.v2.u32 [x0], {t0, t1};", zeros(), block=1)


def test_a_hang_names_the_thread_that_waits():
    """Threads 64 to 95 wait at a barrier; the first two warps leave."""
    body = "setp.lt.u32 p0, tid, 64; @p0 bra DONE; bar.sync 1, 128; DONE:"
    with pytest.raises(EmulationError, match=r"from thread 64 on: waits at barrier 1") as caught:
        launch(body, zeros(), block=96)
    assert "thread (64, 0, 0)" in str(caught.value)
