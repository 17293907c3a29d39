"""The CUDA operators through their binding, emulated: schedules, memory, sm_90, refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

import capmoe_kernels as cm
import oracle_mlp
from capmoe_kernels._op_options import moe_rows
from capmoe_kernels.ops import OPS
from cases import brief, make_experts, normal, router_logits
from checks import assert_close_to_truth, same_bits
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime import launches
from cuda_on_cpu.runtime import operators as emulated
from cuda_on_cpu.runtime.build_extension import architectures
from test_cuda_moe import CAPACITIES
from test_ops import NUM_ROWS, SOFTMAX, samples_of

SCHEDULES = range(1, 6)


@pytest.fixture(autouse=True)
def no_warnings():
    """Every op runs its CUDA kernels, of which the emulator has nothing to say."""
    reason = emulated.why_absent()
    if reason is not None:
        pytest.skip(f"cuda-emulated: {reason}")
    with emulated.UseEmulatedCuda(), runtime.recording() as record:
        yield
    assert record.warnings == []


def same(results, expected):
    both = ([x] if isinstance(x, torch.Tensor) else x for x in (results, expected))
    return all(same_bits(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_no_schedule_shows_in_an_op(name):
    for arguments in samples_of(name):
        expected = getattr(torch.ops.capmoe, name)(*arguments)
        for seed in SCHEDULES:
            with runtime.emulation(seed=seed, resident=1 + seed):
                assert same(getattr(torch.ops.capmoe, name)(*arguments), expected)


@pytest.mark.parametrize("tokens", [5, 300])
@pytest.mark.parametrize("capacity", CAPACITIES, ids=brief)
def test_no_schedule_shows_in_the_layer(capacity, tokens):
    """Few tokens, routed by one block, and many, by a grid."""
    experts, gating = make_experts(8, 32, 16, torch.bfloat16), cm.Gating(2)
    x, logits = normal((tokens, 32), torch.bfloat16), router_logits(tokens, 8, "levels")
    mask, priority = torch.arange(tokens) % 3 > 0, torch.arange(tokens) % 5
    for options in ({}, {"token_mask": mask, "token_priority": priority}):
        arguments = (x, logits, experts, gating, capacity)
        expected = cm.moe(*arguments, **options)
        routing = cm.route(logits, gating, capacity, **options)
        for seed in SCHEDULES:
            with runtime.emulation(seed=seed):
                assert same_bits(cm.moe(*arguments, **options), expected)
                assert same(cm.route(logits, gating, capacity, **options), routing)


MANY = ["gate_kernel", "select_kernel", "grouped_gemm_kernel", "grouped_gemm_kernel"]
FEW = ["route_kernel", "grouped_gemm_kernel", "grouped_gemm_kernel", "combine_kernel"]


@pytest.mark.parametrize(
    ("tokens", "names"), [(0, []), (1, FEW), (64, FEW), (700, [*MANY, "combine_kernel"])]
)
def test_launches_and_nothing_else(tokens, names):
    arguments = (normal((tokens, 32)), router_logits(tokens, 8), make_experts(8, 32, 16))
    with runtime.recording() as record:
        cm.moe(*arguments, cm.Gating(2), cm.Capacity(1.0))
    assert record.names == names
    assert record.synchronisations == record.allocations == record.copies == record.fills == []


@pytest.mark.parametrize("capacity", [*CAPACITIES, cm.Capacity(1.0, reroute_rounds=3)], ids=brief)
def test_no_tokens(capacity):
    """Nobody is asked for: no kernel reads what only tokens would have written."""
    mask = torch.ones(0, dtype=torch.bool)
    for options in ({}, {"token_mask": mask}):
        routing = cm.route(router_logits(0, 8), cm.Gating(2), capacity, **options)
        assert routing.rows.shape[0] == 0
        assert not routing.tokens_per_expert.any()
        assert not routing.expert_offsets.any()
        assert not routing.demand_per_expert.any()


def workspace(tokens, experts, top_k, hidden, intermediate):
    """Bytes of the pieces in float32 where capacity drops by score, of the top-k only: cards."""
    rows = moe_rows(tokens, top_k, cm.Capacity(1.0), experts)
    words = -(-tokens // 32)
    slots = -(-8 * experts * words // 256) * 256 + 4 * words
    marks = [160 * experts * words, 16]
    sizes = [4 * rows, 4 * (experts + 1), 4 * experts, 4 * experts, *marks, slots]
    return 5 * [4 * tokens * top_k] + sizes + [4 * rows * intermediate, 4 * rows * hidden]


@pytest.mark.parametrize("tokens", [3, 700])
def test_one_allocation_beside_the_output(tokens):
    """Whatever the kernels may touch, beside what they were given and return, is of one block.

    Its pieces are those of docs/gpu.md, "Memory of a call".
    """
    x, logits = normal((tokens, 32)), router_logits(tokens, 8)
    experts, seen = make_experts(8, 32, 16), {}

    def looked_at(standin):
        buffers = current_buffers(standin)
        seen.update({buffer.base: buffer.size for buffer in buffers})
        return buffers

    current_buffers = launches.current_buffers
    with mock.patch.object(launches, "current_buffers", looked_at):
        out = cm.moe(x, logits, experts, cm.Gating(2), cm.Capacity(1.0))
    given = (x, logits, experts.gate_up_proj, experts.down_proj, out)
    for tensor in given:
        assert seen.pop(tensor.data_ptr()) == tensor.nbytes
    pieces, align = sorted(seen.items()), 256
    assert [size for _, size in pieces] == workspace(tokens, 8, 2, 32, 16)
    ends = [base + -(-size // align) * align for base, size in pieces]
    gaps = [base - end for end, (base, _) in zip(ends, pieces[1:], strict=False)]
    assert set(gaps) <= {align, 2 * align}  # between two, or with an empty one between


def on_sm_90(run, seed=0):
    """What ``run`` returns and launches, in a thread of its own: launchers remember the device."""

    def in_thread():
        with emulated.UseEmulatedCuda(), runtime.recording(arch="sm_90", seed=seed) as record:
            return run(), record

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_thread).result()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("style", ["skewed", "one_expert"])
def test_the_layer_on_sm_90(dtype, style):
    """Sixteen-bit rows, enough of them for each expert, go to the warpgroups' tensor cores."""
    if "90a" not in architectures():
        pytest.skip("the kernels were not compiled for sm_90a")
    experts, gating, capacity = make_experts(4, 72, 40, dtype), cm.Gating(2), cm.Capacity(1.5)
    x, logits = normal((150, 72), dtype), router_logits(150, 4, style)
    out, record = on_sm_90(lambda: cm.moe(x, logits, experts, gating, capacity))
    product = "grouped_gemm_kernel" if dtype == torch.float32 else "grouped_gemm_sm90_kernel"
    assert record.names == ["gate_kernel", "select_kernel", product, product, "combine_kernel"]
    routing = cm.route(logits, gating, capacity)
    truth = oracle_mlp.moe(x, experts, routing)
    assert_close_to_truth(out, truth, oracle_mlp.same_dtype_moe(x, experts, routing))
    for seed in SCHEDULES:
        again, _ = on_sm_90(lambda: cm.moe(x, logits, experts, gating, capacity), seed)
        assert same_bits(again, out)


@pytest.mark.parametrize("tokens", [5, 300])
def test_the_layer_for_sm_90_is_that_for_sm_80(tokens):
    """float32: the same products, in the same order."""
    arguments = (normal((tokens, 32)), router_logits(tokens, 8), make_experts(8, 32, 16))
    for capacity in CAPACITIES:
        expected = cm.moe(*arguments, cm.Gating(2), capacity)
        got, _ = on_sm_90(lambda c=capacity: cm.moe(*arguments, cm.Gating(2), c))
        assert same_bits(got, expected)


def spoilt(name):
    """Samples of an op, each with one argument that is wrong; and what is wrong with it."""
    arguments = list(samples_of(name)[0])
    for k, value in enumerate(arguments):
        if not isinstance(value, torch.Tensor):
            continue
        wrong = [value.unsqueeze(0), value.to(torch.complex64), value.to("meta")]
        for other in wrong:
            yield [*arguments[:k], other, *arguments[k + 1 :]]
    if name == "gate":
        yield [*arguments[:2], 9, *SOFTMAX[1:], *arguments[10:]]
    if name in ("moe", "select"):
        at = next(k for k, value in enumerate(arguments) if value is NUM_ROWS)
        yield [*arguments[:at], -1, *arguments[at + 1 :]]


def refusal(name, arguments):
    """The message, without the place in the source."""
    with pytest.raises(RuntimeError) as refused:
        getattr(torch.ops.capmoe, name)(*arguments)
    return str(refused.value).splitlines()[0].split(", ", 2)[-1]


@pytest.mark.parametrize("name", OPS)
def test_wrong_input_is_refused_before_any_launch(name):
    """In the words of the CPU operators."""
    if torch.__version__ < torch.torch_version.TorchVersion("2.13"):
        pytest.skip("before torch 2.13 an error in an op of the stable ABI ends the process")
    for arguments in spoilt(name):
        with runtime.recording() as record:
            said = refusal(name, arguments)
        assert record.launches == []
        on_meta = any(isinstance(x, torch.Tensor) and x.is_meta for x in arguments)
        if not on_meta and cm.backends().serving["cpu"] == "cpu":
            with _disable_current_modes():
                assert refusal(name, arguments) == said
