"""The layer as one op: on every backend, and what only a GPU, or its emulation, can show."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
import oracle_mlp
from capmoe_kernels import reference
from capmoe_kernels.ops import OPS
from cases import brief, make_experts, named, normal, router_logits
from checks import assert_close_to_truth, same_bits
from conftest import why_absent
from cuda_on_cpu import runtime
from test_ops import moe_samples, samples_of

CAPACITIES = [
    cm.Capacity(),
    cm.Capacity(1.0),
    cm.Capacity(limit=0),
    cm.Capacity(0.7, expand="local", local_experts=(2, 6), policy="random", seed=2**40),
    cm.Capacity(1.0, expand="rank", extra=2, max_experts_per_token=2),
    cm.Capacity(1.0, reroute_rounds=2),
    cm.Capacity(1.0, scope="device", experts_per_device=4),
]
capacities = pytest.mark.parametrize("capacity", CAPACITIES, ids=brief)


def test_the_op_is_the_reference(backend, poison):
    for arguments in moe_samples():
        with backend.serving():
            out = torch.ops.capmoe.moe(*arguments)
        wide = [a.double() if is_layer_float(a, arguments) else a for a in arguments]
        expected = reference.moe(*arguments)
        assert_close_to_truth(out, reference.moe(*wide), expected)


def is_layer_float(argument, arguments):
    """Of the tensors that flow through the experts, not of those that decide the routing."""
    router_logits, selection_bias = arguments[1:3]
    if argument is router_logits or argument is selection_bias:
        return False
    return isinstance(argument, torch.Tensor) and argument.is_floating_point()


def kernels_launched(backend, run):
    """Names of the kernels that ``run`` launches, in order; skips where nothing is launched."""
    if backend.name == "cuda-emulated":
        with runtime.recording(seed=1) as record:
            run()
        assert record.synchronisations == record.allocations == record.fills == []
        assert record.warnings == []
        return record.names
    if backend.device.type != "cuda":
        pytest.skip(f"{backend} launches no kernels")
    run()  # whatever is done once only
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if "capmoe" in event.name]
    assert not [event for event in profile.events() if "Memset" in event.name]
    return [event.name for event in sorted(kernels, key=lambda event: event.time_range.start)]


@capacities
@pytest.mark.parametrize(("tokens", "most"), [(3, 4), (400, 5)])
def test_launches(backend, capacity, tokens, most):
    """Route, up, down and combine; above a few tokens gate and select instead of route."""
    x, logits = normal((tokens, 32)), router_logits(tokens, 8, "skewed")
    arguments = (x, logits, make_experts(8, 32, 16), cm.Gating(2), capacity)
    launched = kernels_launched(backend, lambda: cm.moe(*arguments))
    assert 1 <= len(launched) <= most, launched


@pytest.fixture
def gpu():
    """A device, and no backend between it and the public API."""
    reason = why_absent("cuda")
    if reason is not None:
        pytest.skip(f"cuda: {reason}")
    return torch.device("cuda")


def on(device, experts):
    tensors = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")
    moved = [getattr(experts, name) for name in tensors]
    moved = [None if tensor is None else tensor.to(device) for tensor in moved]
    return cm.Experts(*moved, activation=experts.activation, layout=experts.layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@named("one_token", "capacity_zero", "ragged", "ties", "e60", "decode", "rows_of_one")
def test_sanitized_layer(gpu, case, dtype):
    """Small, and every kernel: what compute-sanitizer is run on."""
    experts = on(gpu, case.experts(dtype, bias=True))
    x, logits = case.hidden(dtype).to(gpu), case.logits().to(gpu)
    out = cm.moe(x, logits, experts, case.gating, case.capacity)
    routing = cm.route(logits, case.gating, case.capacity)
    y = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
    assert same_bits(out, cm.combine(y, routing))
    x, experts = x.cpu(), on("cpu", experts)
    routing = cm.Routing(*(tensor.cpu() for tensor in routing))
    truth = oracle_mlp.moe(x, experts, routing)
    assert_close_to_truth(out.cpu(), truth, oracle_mlp.same_dtype_moe(x, experts, routing))


@pytest.mark.parametrize("tokens", [0, 1, 5, 300])
@capacities
def test_graph_stream_and_eager_agree(gpu, capacity, tokens):
    experts, gating = on(gpu, make_experts(8, 64, 48, torch.bfloat16)), cm.Gating(2)
    x, logits = normal((tokens, 64), torch.bfloat16).to(gpu), router_logits(tokens, 8).to(gpu)
    eager = cm.moe(x, logits, experts, gating, capacity)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = cm.moe(x, logits, experts, gating, capacity)
    torch.cuda.current_stream().wait_stream(stream)
    assert same_bits(other, eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cm.moe(x, logits, experts, gating, capacity)
    for seed in range(3):
        x.copy_(normal((tokens, 64), torch.bfloat16, seed))
        logits.copy_(router_logits(tokens, 8, seed=seed))
        graph.replay()
        assert same_bits(out, cm.moe(x, logits, experts, gating, capacity))


def test_no_call_waits_for_the_device(gpu):
    experts, gating = on(gpu, make_experts(8, 64, 48)), cm.Gating(2)
    x, logits = normal((40, 64)).to(gpu), router_logits(40, 8).to(gpu)
    mask, priority = torch.arange(40).to(gpu) % 3 > 0, torch.arange(40).to(gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for capacity in CAPACITIES:
            options = {"token_mask": mask, "token_priority": priority}
            cm.moe(x, logits, experts, gating, capacity, **options)
            routing = cm.route(logits, gating, capacity, **options)
            cm.combine(cm.grouped_mlp(cm.dispatch(x, routing), experts, routing), routing)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_strided_and_unaligned_tensors(gpu):
    """Rows that begin anywhere: the kernels' narrow paths, and copies of what is not dense."""
    experts, gating = on(gpu, make_experts(8, 24, 20, torch.bfloat16)), cm.Gating(2)
    wide = normal((41, 48), torch.bfloat16).to(gpu)
    logits = router_logits(40, 16).to(gpu)[:, ::2]
    flat = normal((40 * 24 + 1,), torch.bfloat16).to(gpu)
    for x in [wide[1:, ::2], wide[1:, 3:27], flat[1:].view(40, 24)]:
        out = cm.moe(x, logits, experts, gating)
        dense = cm.moe(x.clone(), logits.contiguous(), experts, gating)
        tolerance = 8 * torch.finfo(x.dtype).eps
        torch.testing.assert_close(out, dense, rtol=tolerance, atol=tolerance)
        routing = cm.route(logits, gating)
        live = routing.row_tokens >= 0
        moved = cm.dispatch(x, routing)[live]
        assert same_bits(moved, x[routing.row_tokens[live].long()].contiguous())


@pytest.mark.parametrize("name", OPS)
def test_opcheck_on_the_gpu(gpu, name):
    for arguments in samples_of(name):
        moved = [a.to(gpu) if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.library.opcheck(getattr(torch.ops.capmoe, name).default, moved)


def test_tensors_on_two_devices(gpu):
    if torch.__version__ < torch.torch_version.TorchVersion("2.13"):
        pytest.skip("before torch 2.13 an error in an op of the stable ABI ends the process")
    experts, logits = make_experts(8, 16, 12), router_logits(5, 8).to(gpu)
    routing = cm.route(logits, cm.Gating(2))
    with pytest.raises(ValueError, match="must be on cpu like the other tensors, got cuda"):
        cm.moe(normal((5, 16)), logits, experts, cm.Gating(2))
    with pytest.raises(RuntimeError, match=r"row_tokens must be on cpu like .*, got cuda:0"):
        torch.ops.capmoe.dispatch(normal((5, 16)), routing.row_tokens)


def test_indices_of_no_row_are_skipped(gpu):
    """A caller's own routing is not looked at: what is out of range is padding."""
    x, huge = normal((4, 16)).to(gpu), 2**31 - 1
    moved = torch.ops.capmoe.dispatch(x, torch.tensor([1, 4, -7, huge, 3]).int().to(gpu))
    assert same_bits(moved[[0, 4]], x[[1, 3]])
    rows = torch.tensor([[0, 4], [-9, huge], [2, 3]]).int().to(gpu)
    out = torch.ops.capmoe.combine(x, rows, torch.ones(3, 2, device=gpu))
    assert same_bits(out[:2], torch.stack([x[0], torch.zeros_like(x[0])]))


@capacities
def test_compile_on_the_gpu(gpu, capacity):
    experts, gating = on(gpu, make_experts(8, 16, 12)), cm.Gating(2, renormalize="kept")
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def layer(x, logits):
        return cm.moe(x, logits, experts, gating, capacity)

    for tokens in [33, 5, 257]:
        x, logits = normal((tokens, 16)).to(gpu), router_logits(tokens, 8).to(gpu)
        assert same_bits(layer(x, logits), cm.moe(x, logits, experts, gating, capacity))
