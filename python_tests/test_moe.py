"""The whole layer against float64 loops, and what must hold to the bit."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
import oracle_mlp
from cases import CASES, brief, every_case, make_experts, named, normal, router_logits
from checks import assert_close_to_truth, same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def unfused(hidden_states, logits, experts, gating, capacity=None, **options):
    """The README's four calls. -> (output, routing)"""
    routing = cm.route(logits, gating, capacity, **options)
    y = cm.grouped_mlp(cm.dispatch(hidden_states, routing), experts, routing)
    return cm.combine(y, routing), routing


def check_moe(x, logits, experts, gating, capacity=None, **options):
    out = cm.moe(x, logits, experts, gating, capacity, **options)
    parts, routing = unfused(x, logits, experts, gating, capacity, **options)
    truth = oracle_mlp.moe(x, experts, routing)
    assert out.dtype == x.dtype
    assert_close_to_truth(out, truth, oracle_mlp.same_dtype_moe(x, experts, routing))
    assert same_bits(out, parts), "fused is unfused"
    lonely = (routing.rows < 0).all(1)
    assert same_bits(out[lonely], torch.zeros_like(out[lonely]))
    return out


@dtypes
@every_case
def test_cases(backend, poison, case, dtype):
    check_moe(case.hidden(dtype), case.logits(), case.experts(dtype), case.gating, case.capacity)


@dtypes
@pytest.mark.parametrize(
    ("gating", "capacity"),
    [
        (cm.Gating(2, renormalize="topk"), cm.Capacity(1.0)),
        (cm.Gating(2, renormalize="kept"), cm.Capacity(0.5)),
        (cm.Gating(3, "sigmoid", "topk", 2.5, 4, 2, "top2_sum"), cm.Capacity(1.25)),
        (cm.Gating(2), cm.Capacity(1.0, expand="local", local_experts=(4, 8))),
        (cm.Gating(2), cm.Capacity(1.0, expand="rank", extra=2, max_experts_per_token=2)),
        (cm.Gating(2), cm.Capacity(1.0, reroute_rounds=3)),
        (cm.Gating(2), cm.Capacity(1.0, scope="device", experts_per_device=4)),
        (cm.Gating(2), cm.Capacity(0.7, policy="keep_first")),
    ],
    ids=brief,
)
def test_options(backend, poison, dtype, gating, capacity):
    experts = make_experts(16, 24, 20, dtype, bias=True, activation="gelu_tanh")
    x, logits = normal((48, 24), dtype), router_logits(48, 16, "skewed").to(dtype)
    check_moe(x, logits, experts, gating, capacity)


def test_bias_mask_and_priority_reach_the_router(backend, poison):
    experts = make_experts(8, 16, 12)
    x, logits = normal((40, 16)), router_logits(40, 8, "distinct")
    mask, priority = torch.arange(40) % 4 != 3, torch.arange(40) % 2
    bias = normal((8,), seed=7)
    gating, capacity = cm.Gating(2), cm.Capacity(0.6)
    plain = cm.moe(x, logits, experts, gating, capacity)
    for options in [
        {"token_mask": mask},
        {"token_priority": priority},
        {"selection_bias": bias},
        {"token_mask": mask, "token_priority": priority, "selection_bias": bias},
    ]:
        out = check_moe(x, logits, experts, gating, capacity, **options)
        assert not out.equal(plain), options


@dtypes
@pytest.mark.parametrize("factor", [None, math.inf, 8.0, 1e6])
@named("ragged", "e60", "prefill_small")
def test_item_06_dropless_to_the_bit(backend, case, factor, dtype):
    x, experts = case.hidden(dtype), case.experts(dtype)
    factor = factor and max(factor, case.E / case.k)
    dropless = cm.moe(x, case.logits(), experts, case.gating)
    bounded = cm.moe(x, case.logits(), experts, case.gating, cm.Capacity(factor))
    assert same_bits(dropless, bounded)


@dtypes
@pytest.mark.parametrize(
    "capacity", [cm.Capacity(0), cm.Capacity(0.0), cm.Capacity(limit=0)], ids=brief
)
def test_item_06_factor_zero_is_exactly_zero(backend, poison, capacity, dtype):
    experts = make_experts(8, 16, 12, dtype, bias=True)
    out = cm.moe(normal((30, 16), dtype), router_logits(30, 8), experts, cm.Gating(2), capacity)
    assert same_bits(out, torch.zeros(30, 16, dtype=dtype))


@dtypes
def test_no_tokens(backend, dtype):
    experts = make_experts(8, 16, 12, dtype)
    out = cm.moe(torch.zeros(0, 16, dtype=dtype), torch.zeros(0, 8), experts, cm.Gating(2))
    assert out.shape == (0, 16)
    assert out.dtype == dtype


@dtypes
@named("ragged", "e60", "decode", "prefill_small")
def test_thread_count_changes_no_bit(backend, case, dtype):
    x, experts = case.hidden(dtype), case.experts(dtype)
    if backend.name == "reference":
        pytest.skip("plain PyTorch makes no such promise")
    outs = []
    for threads in [1, 2, 3]:
        torch.set_num_threads(threads)
        try:
            outs.append(unfused(x, case.logits(), experts, case.gating, case.capacity))
        finally:
            torch.set_num_threads(1)
    for out, routing in outs[1:]:
        assert same_bits(out, outs[0][0])
        assert all(same_bits(a, b) for a, b in zip(routing, outs[0][1], strict=True))


@dtypes
@named("ragged", "e60", "prefill_small")
def test_batch_invariance(backend, case, dtype):
    """Dropless, a token's output does not depend on who else is in the batch."""
    if backend.name == "reference":
        pytest.skip("plain PyTorch's matmul makes no such promise")
    x, logits, experts = case.hidden(dtype), case.logits(), case.experts(dtype)
    together = cm.moe(x, logits, experts, case.gating)
    for size in [1, 5, 64]:
        chunk = slice(case.T - size, case.T)
        assert same_bits(cm.moe(x[chunk], logits[chunk], experts, case.gating), together[chunk])


@dtypes
def test_nan_stays_in_its_token(backend, poison, dtype):
    x, experts = normal((50, 24), dtype), make_experts(8, 24, 16, dtype)
    logits = router_logits(50, 8)
    clean = cm.moe(x, logits, experts, cm.Gating(2))
    x[9, 5] = float("nan")
    out = cm.moe(x, logits, experts, cm.Gating(2))
    others = torch.arange(50) != 9
    assert out[9].isnan().all()
    assert same_bits(out[others], clean[others])


def test_pack_changes_no_bit(backend):
    case = next(case for case in CASES if case.name == "ragged")
    for layout in ["concat", "interleaved"]:
        experts = case.experts(layout=layout, bias=True)
        arguments = (case.hidden(), case.logits())
        options = (case.gating, case.capacity)
        out = cm.moe(*arguments, experts, *options)
        packed = cm.moe(*arguments, experts.pack(), *options)
        if backend.name == "reference":  # plain PyTorch's matmul rounds by strides
            torch.testing.assert_close(packed, out, rtol=1e-6, atol=1e-6)
        else:
            assert same_bits(packed, out)


@dtypes
def test_strided_inputs(backend, dtype):
    x, logits = normal((40, 48), dtype), router_logits(40, 16)
    experts = make_experts(8, 24, 16, dtype)
    out = cm.moe(x[:, ::2], logits[:, ::2], experts, cm.Gating(2))
    dense = cm.moe(x[:, ::2].contiguous(), logits[:, ::2].contiguous(), experts, cm.Gating(2))
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, dense, rtol=rtol, atol=rtol)


def test_the_inputs_are_left_alone(backend):
    x, logits, experts = normal((20, 16)), router_logits(20, 8), make_experts(8, 16, 12, bias=True)
    tensors = [x, logits, experts.gate_up_proj, experts.down_proj, experts.gate_up_bias]
    before = [tensor.clone() for tensor in tensors]
    cm.moe(x, logits, experts, cm.Gating(2), cm.Capacity(0.5))
    assert all(a.equal(b) for a, b in zip(tensors, before, strict=True))


def test_inference_mode_and_no_grad(backend):
    x, logits = normal((20, 16)).requires_grad_(), router_logits(20, 8)
    experts = make_experts(8, 16, 12)
    with torch.inference_mode():
        first = cm.moe(x, logits, experts, cm.Gating(2))
    with torch.no_grad():
        second = cm.moe(x, logits, experts, cm.Gating(2))
    assert first.equal(second)
    assert not second.requires_grad
