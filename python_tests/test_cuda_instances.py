"""Every kernel of the built images is executed, through the operators, and its results are right.

A template instance that nobody can reach fails here: it has no place in the package.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from cases import make_experts, normal, router_logits
from checks import assert_close_to_truth, check_gate, same_bits
from conftest import Backend
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime import operators as emulated
from cuda_on_cpu.runtime.build_extension import architectures
from cuda_on_cpu.runtime.launches import short_name

if emulated.why_absent() is not None:
    pytest.skip(f"cuda-emulated: {emulated.why_absent()}", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of a layout of the gate each; the first also has a kernel for two columns.
EXPERTS = [8, 16, 32, 64, 128, 256, 512]
CUDA = Backend("cuda-emulated")


def gates():
    """By the layout, the logits' type and whether something beside the logits ranks."""
    for dtype in DTYPES:
        for experts in [*EXPERTS, 600]:
            logits = router_logits(3, experts, "distinct").to(dtype)
            for top_k in (2, 3) if experts == 8 else (3,):
                for bias in (None, normal((experts,))):
                    check_gate(CUDA, logits, cm.Gating(top_k), bias)


def routes():
    """As the gate, and the layer of few tokens behind it."""
    for experts in EXPERTS:
        weights, x, outs = make_experts(experts, 8, 8), normal((2, 8)), []
        for dtype in DTYPES:
            logits = router_logits(2, experts, "distinct").to(dtype)
            for top_k in (2, 3) if experts == 8 else (3,):
                for bias in (None, normal((experts,))):
                    out = cm.moe(x, logits, weights, cm.Gating(top_k), selection_bias=bias)
                    outs.append((out, *layers(x, logits, bias, weights, top_k)))
        assert_close_to_truth(*map(torch.cat, zip(*outs, strict=True)))


def layers(x, logits, bias, experts, top_k):
    """The layer in float64 and, by the reference, in float32; the same experts in both."""
    options = (top_k, "softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0)
    ids, weights, _ = reference.gate(logits, bias, *options)
    routing = cm.select(ids, weights, experts.num_experts)
    exact = logits.double().softmax(1).gather(1, ids.long())
    for dtype, weights in ((torch.float64, exact), (torch.float32, routing.weights)):
        matrices = (experts.gate_up_proj.to(dtype), experts.down_proj.to(dtype), None, None)
        places = (routing.expert_offsets, routing.tokens_per_expert, routing.row_tokens)
        y = reference.grouped_mlp(x.to(dtype), *matrices, *places, "silu", "concat")
        yield reference.combine(y, routing.rows, weights)


def selects():
    """By the ids' type, a block's warps, the common case and the general; what nothing bounds."""
    bound = cm.Capacity(limit=5)
    for ids_type in (torch.int32, torch.int64):
        for tokens, experts, capacity, masked in [
            (9, 4, cm.Capacity(), False),
            (9, 4, bound, False),
            (9, 4, bound, True),
            (8200, 1, bound, False),
            (8200, 1, bound, True),
        ]:
            scores = router_logits(tokens, experts, "levels")
            ids = (torch.arange(tokens) % experts).to(ids_type).unsqueeze(1)
            pairs = (ids, scores[:, :1].contiguous(), scores[:, :1].contiguous())
            mask = {"token_mask": torch.arange(tokens) % 3 > 0} if masked else {}
            got = CUDA.select(*pairs, experts, capacity, **mask)
            expected = Backend("reference").select(*pairs, experts, capacity, **mask)
            assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


def dispatches():
    """By the words that rows of 16, 8, 4 and 2 bytes' alignment are copied in."""
    rows = torch.tensor([2, 0, 4, 3, 1], dtype=torch.int32)
    for hidden in (8, 4, 2, 1):
        x = normal((5, hidden), torch.bfloat16)
        assert same_bits(torch.ops.capmoe.dispatch(x, rows), reference.dispatch(x, rows))


def combines():
    """By type, and by tokens and columns: four packs a thread, two, one, and single elements."""
    for dtype in DTYPES:
        pack = 32 * 16 // dtype.itemsize
        for tokens, hidden, k in [(512, 4 * pack, 1), (3, 2 * pack, 3), (3, 8, 1), (3, 5, 1)]:
            y, weights = normal((tokens, hidden), dtype), normal((tokens, k))
            rows = torch.arange(tokens, dtype=torch.int32).flip(0).unsqueeze(1).repeat(1, k)
            out = torch.ops.capmoe.combine(y, rows, weights)
            truth = reference.combine(y.double(), rows, weights.double())
            assert_close_to_truth(out, truth, reference.combine(y, rows, weights))


def products():
    """By type, rows of an expert, alignment, and whether its table leaves room for warpgroups."""
    for dtype in DTYPES:
        for experts, rows, hidden in [
            *((1, rows, 16) for rows in (4, 24, 65)),
            *((1537, rows, 8) for rows in (24, 65)),
            (1, 4, 5),
        ]:
            weights = make_experts(experts, hidden, hidden, dtype)
            x = normal((3, hidden), dtype)
            counts = torch.zeros(experts, dtype=torch.int32)
            counts[-1] = min(rows, 40)
            offsets = torch.zeros(experts + 1, dtype=torch.int32)
            offsets[-1] = rows
            tokens = torch.arange(experts * rows, dtype=torch.int32) % 3
            matrices = (weights.gate_up_proj, weights.down_proj)
            places = (None, None, offsets, counts, tokens, "silu", "concat")
            live = slice(0, int(counts[-1]))
            out = torch.ops.capmoe.grouped_mlp(x, *matrices, *places)[live]
            same = reference.grouped_mlp(x, *matrices, *places)[live]
            wide = (matrix.double() for matrix in matrices)
            truth = reference.grouped_mlp(x.double(), *wide, *places)[live]
            assert_close_to_truth(out, truth, same)


CALLS = {
    gates: {"gate_kernel", "gate_wide_kernel"},
    routes: {"route_kernel"},
    selects: {"mark_kernel", "select_kernel", "select_apart_kernel"},
    dispatches: {"dispatch_kernel"},
    combines: {"combine_kernel"},
    products: {"grouped_gemm_kernel", "grouped_gemm_sm90_kernel"},
}


def on(arch, calls):
    """Symbols of what ``calls`` launches, in a thread of its own: launchers remember the device."""

    def in_thread():
        with emulated.UseEmulatedCuda(), runtime.recording(arch=arch) as record:
            calls()
        assert record.warnings == []
        return {launch.symbol for launch in record.launches}

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_thread).result()


def built():
    """Those of the package: other libraries of launchers may be open."""
    emulated.load_operators()
    return [kernel for kernel in runtime.registered_kernels() if "6capmoe4cuda" in kernel.symbol]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: calls.__name__)
def test_every_instance_is_launched(calls, arch):
    if arch == "sm_90" and "90a" not in architectures():
        pytest.skip("the kernels were not compiled for sm_90a")
    own = [kernel for kernel in built() if short_name(kernel.symbol) in CALLS[calls]]
    assert {kernel.symbol for kernel in own if kernel.has_code(arch)} - on(arch, calls) == set()


def test_no_kernel_is_left_out():
    names = {short_name(kernel.symbol) for kernel in built()}
    assert names == set.union(*CALLS.values())
