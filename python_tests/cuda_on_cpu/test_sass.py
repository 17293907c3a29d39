"""Instructions by class, and what ptxas would make of them."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from cuda_on_cpu import Const, compile_cuda, emulate
from cuda_on_cpu import nvcc_kernels as nk
from cuda_on_cpu.classes import ptx_class, sass_class
from cuda_on_cpu.counts import counts_table
from cuda_on_cpu.ptx_snippets import module
from cuda_on_cpu.sass import sass_estimate, static_sass
from cuda_on_cpu.toolkit import assemble, disassemble, find_tool

if find_tool("ptxas") is None or find_tool("nvdisasm") is None:
    pytest.skip("ptxas or nvdisasm is not there", allow_module_level=True)


@pytest.mark.parametrize(
    ("statement", "expected"),
    {
        "add.s32 a, b, c": "integer",
        "@%p1 mad.lo.s32 a, b, c, d": "integer",
        "setp.lt.s32 p, a, b": "integer",
        "and.b32 a, b, c": "integer",
        "fma.rn.f32 a, b, c, d": "float",
        "setp.lt.f32 p, a, b": "float",
        "fma.rn.bf16x2 a, b, c, d": "half",
        "fma.rn.f64 a, b, c, d": "double",
        "cvt.rn.f32.s32 a, b": "conversion",
        "ex2.approx.ftz.f32 a, b": "special function",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 a, b, c, d": "tensor",
        "ld.global.nc.v4.u32 {a, b, c, d}, [e]": "memory.global",
        "cp.async.cg.shared.global [a], [b], 16": "memory.global",
        "@!%p2 atom.shared.add.u32 a, [b], c": "memory.shared",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {a, b, c, d}, [e]": "memory.shared",
        "st.local.u32 [a], b": "memory.local",
        "ld.param.u64 a, [b]": "memory.constant",
        "ld.u32 a, [b]": "memory.generic",
        "cp.async.wait_group 1": "barrier/sync",
        "bar.sync 0": "barrier/sync",
        "shfl.sync.idx.b32 a, b, c, d, e": "shuffle/vote",
        "bra.uni L": "control",
        "mov.u32 a, b": "move/other",
    }.items(),
)
def test_classes_of_ptx(statement, expected):
    assert ptx_class(statement) == expected


@pytest.mark.parametrize(
    ("opcode", "expected"),
    {
        "IMAD.WIDE.U32": "integer",
        "UIADD3": "integer",
        "IMAD.MOV.U32": "move/other",
        "FFMA.FTZ": "float",
        "HMMA.16816.F32.BF16": "tensor",
        "LDGSTS.E.BYPASS.128": "memory.global",
        "LDSM.16.MT88.4": "memory.shared",
        "ULDC.64": "memory.constant",
        "MUFU.EX2": "special function",
        "S2R": "move/other",
    }.items(),
)
def test_classes_of_sass(opcode, expected):
    assert sass_class(opcode) == expected


def test_a_straight_line_by_hand():
    """Two warps: an address of 64 bits, a load, eight dependent products, a store."""
    body = "mul.wide.u32 x0, tid, 4; add.u64 x0, g0, x0;\nld.global.f32 f0, [x0];\n"
    body += "fma.rn.f32 f0, f0, f0, f0;\n" * 8 + "st.global.f32 [x0], f0;"
    kernel = emulate(module(body))
    report = kernel[1, 64](torch.zeros(64))
    assert report.classes == {
        "integer": 2 * 2,
        "float": 2 * 8,
        "memory.global": 2 * 2,
        "memory.constant": 2,
        "move/other": 2 * 2,  # cvta, mov of %tid.x
        "control": 2,
    }
    estimate = sass_estimate(kernel, report, "sm_80")
    assert estimate.classes["float"] == pytest.approx(2 * 8, rel=0.1)
    assert estimate.classes["memory.global"] == pytest.approx(2 * 2, rel=0.1)
    assert estimate.total == pytest.approx(2 * estimate.static, rel=0.01)


def test_runs_of_a_line():
    body = "mov.u32 t0, 0;\nL: add.u32 t0, t0, 1;\nsetp.lt.u32 p0, t0, 5;\n@p0 bra L;"
    kernel = emulate(module(body))
    report = kernel[3, 64](torch.zeros(1))
    lines = kernel.loaded.ptx.splitlines()
    runs = {lines[line - 1].strip(): count for line, count in report.executed.items()}
    assert runs["mov.u32 t0, 0;"] == 3 * 2
    assert runs["setp.lt.u32 p0, t0, 5;"] == runs["@p0 bra L;"] == 3 * 2 * 5
    assert sum(report.executed.values()) == report.counts["warp_instructions"]


def test_a_copied_loop_counts_once():
    """ptxas copies the body; the loads that run are those of the PTX all the same."""
    source = """extern "C" __global__ void sum(const float* x, float* out, int n) {
        float s = 0;
        for (int i = threadIdx.x; i < n * 32; i += 32) s = fmaxf(s + x[i], 1);
        out[threadIdx.x] = s;
    }"""
    kernel = emulate(compile_cuda(source), "sum")
    n = 64
    x, out = torch.ones(n * 32), torch.zeros(32)
    report = kernel[1, 32](Const(x), out, n)
    assert out.eq(n).all()
    estimate = sass_estimate(kernel, report, "sm_80")
    loads = {one.line for one in kernel.lowering.instructions if "ld.global" in one.text}
    lines = {one.line for one in kernel.lowering.instructions if one.text}
    sass = static_sass(kernel.loaded.ptx, "sum", lines, "sm_80")
    assert sum(sum(sass[line].values()) for line in loads) > len(loads)
    assert estimate.classes["memory.global"] == pytest.approx(n + 1, rel=0.1)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", ["gemm", "slots"])
def test_static_instructions_are_those_of_the_cubin(source, arch):
    ptx = nk.compiled(source)
    text = disassemble(assemble(ptx, arch)[0])
    for name in re.findall(r"\.visible \.entry (\w+)", ptx):
        kernel = emulate(ptx, name)
        lines = {one.line for one in kernel.lowering.instructions if one.text}
        counted = sum(sum(ops.values()) for ops in static_sass(ptx, name, lines, arch).values())
        section = text.split(f"//--------------------- .text.{name} ")[1].split("//-----")[0]
        instructions = re.findall(r"/\*[0-9a-f]{4}\*/ +(?:@!?U?P\w+ +)?(\w+)", section)
        assert counted == sum(opcode != "NOP" for opcode in instructions) > 100


RUNS = {
    "grouped_gemm": nk.grouped_gemm,
    "topk_gate": nk.topk_gate,
    "softmax_rows": nk.softmax_rows,
    "scan_rows": partial(nk.scan_rows, rows=1),
}


def test_of_real_kernels(record_property):
    """What has one SASS instruction for one of PTX comes out the same; the table is printed."""
    reports, estimates = {}, {}
    for name, run in RUNS.items():
        ptx = nk.compiled(nk.source_of(run))
        reports[name] = run(ptx, nk.Launch()).report
        estimates[name] = sass_estimate(emulate(ptx, name), reports[name], "sm_80")
    gemm, report = estimates["grouped_gemm"], reports["grouped_gemm"]
    assert gemm.classes["tensor"] == pytest.approx(report.classes["tensor"], rel=0.01)
    for name in RUNS:
        ptx_loads = reports[name].classes["memory.global"]
        assert estimates[name].classes["memory.global"] == pytest.approx(ptx_loads, rel=0.25)
        assert 0.5 < estimates[name].total / reports[name].counts["warp_instructions"] < 2
    table = counts_table(reports, sass=estimates)
    record_property("counts_table", table)
    for words in ("tensor", "shuffle/vote", "SASS estimate", f"{round(gemm.total):,}"):
        assert words in table
