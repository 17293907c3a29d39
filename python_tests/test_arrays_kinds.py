"""NumPy's and JAX's arrays: every function and dtype, weights, what is shared and what is not."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.arrays import accepts_arrays
from cases import make_experts, normal, router_logits, topk_of
from checks import same_bits

GATING, CAPACITY = cm.Gating(2), cm.Capacity(1.0)


def to_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_jax(tensor):
    return jnp.asarray(to_numpy(tensor))


def to_torch(array):
    """A copy, by a way of its own."""
    if array.dtype == ml_dtypes.bfloat16:
        bits = torch.from_numpy(np.array(array).view(np.uint16))
        return bits.view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


KINDS = {"numpy": (to_numpy, np.ndarray), "jax": (to_jax, jax.Array)}
kinds = pytest.mark.parametrize(("make", "kind"), KINDS.values(), ids=KINDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def check(got, expected, kind):
    assert isinstance(got, kind)
    assert same_bits(to_torch(got), expected)


@kinds
@dtypes
@pytest.mark.parametrize("tokens", [30, 0])
def test_the_whole_layer(make, kind, dtype, tokens):
    x, logits = normal((tokens, 16), dtype), router_logits(tokens, 8).to(dtype)
    made = make_experts(8, 16, 12, dtype, bias=True)
    weights = (made.gate_up_proj, made.down_proj, made.gate_up_bias, made.down_bias)
    experts = cm.Experts(*map(make, weights))
    expected = cm.moe(x, logits, made, GATING, CAPACITY)
    check(cm.moe(make(x), make(logits), experts, GATING, CAPACITY), expected, kind)
    check(cm.moe(make(x), make(logits), experts.pack(), GATING, CAPACITY), expected, kind)

    routing = cm.route(make(logits), GATING, CAPACITY)
    assert isinstance(routing, cm.Routing)
    for got, want in zip(routing, cm.route(logits, GATING, CAPACITY), strict=True):
        check(got, want, kind)
    y = cm.grouped_mlp(cm.dispatch(make(x), routing), experts, routing)
    check(cm.combine(y, routing), expected, kind)


@kinds
def test_own_topk(make, kind):
    ids, weights = topk_of(router_logits(20, 8).softmax(1), 2)
    mask, priority = torch.arange(20) % 5 > 0, torch.arange(20, dtype=torch.int32) % 2
    expected = cm.select(ids, weights, 8, CAPACITY, token_mask=mask, token_priority=priority)
    options = {"token_mask": make(mask), "token_priority": make(priority)}
    routing = cm.select(make(ids), make(weights), 8, CAPACITY, **options)
    for got, want in zip(routing, expected, strict=True):
        check(got, want, kind)


@kinds
def test_weights_are_shared(make, kind):
    """Experts of arrays are tensors of the same memory, strides and biases included."""
    up, down = make(normal((4, 12, 8))), make(normal((4, 8, 6)))
    bias, down_bias = make(normal((4, 12))), make(normal((4, 8)))
    experts = cm.Experts(up, down, bias, down_bias)
    for array, tensor in [
        (up, experts.gate_up_proj),
        (down, experts.down_proj),
        (bias, experts.gate_up_bias),
        (down_bias, experts.down_bias),
    ]:
        at = array.ctypes.data if kind is np.ndarray else array.unsafe_buffer_pointer()
        assert tensor.data_ptr() == at
        assert same_bits(tensor, to_torch(array))


def test_numpy_bfloat16_is_shared_both_ways():
    array = np.arange(24).reshape(4, 6).astype(ml_dtypes.bfloat16)[:, ::2]
    seen = []

    @accepts_arrays
    def same(tensor):
        seen.append(tensor)
        return tensor

    out = same(array)
    assert seen[0].dtype == torch.bfloat16
    assert seen[0].tolist() == array.tolist()
    assert out.dtype == ml_dtypes.bfloat16
    assert np.shares_memory(out, array)


def test_what_jax_gets_is_the_tensors_memory():
    made = []

    @accepts_arrays
    def double(tensor):
        made.append(tensor * 2)
        return made[0]

    out = double(jnp.arange(1000.0))
    assert out.unsafe_buffer_pointer() == made[0].data_ptr()


@kinds
def test_nothing_is_written_or_shared_between_results(make, kind):
    """Inputs stay as they are; results stay when later calls make others."""
    x, logits = make(normal((30, 16))), make(router_logits(30, 8))
    mask = make(torch.arange(30) % 5 > 0)
    made = make_experts(8, 16, 12)
    experts = cm.Experts(make(made.gate_up_proj), make(made.down_proj))
    before = [np.array(array) for array in (x, logits, mask)]
    routing = cm.route(logits, GATING, CAPACITY, token_mask=mask)
    rows = cm.dispatch(x, routing)
    out = cm.combine(cm.grouped_mlp(rows, experts, routing), routing)
    kept = [np.array(array) for array in (*routing, rows, out)]
    cm.moe(x * 3, -logits, experts, GATING, CAPACITY)
    cm.combine(cm.grouped_mlp(rows + 1, experts, routing), routing)
    for array, copy in zip((x, logits, mask), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    for array, copy in zip((*routing, rows, out), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert same_bits(experts.gate_up_proj, made.gate_up_proj)
    views = [np.asarray(array) for array in (x, logits, mask, *routing, rows, out)]
    for i, array in enumerate(views):
        assert not any(np.shares_memory(array, other) for other in views[:i])


def test_numpy_results_may_be_written():
    out = cm.combine(
        np.ones((2, 4), np.float32), cm.route(router_logits(2, 4).numpy(), cm.Gating(1))
    )
    assert out.flags.writeable


def test_read_only_arrays():
    """np.asarray of a JAX array: read, never written, and no warning."""
    logits = np.asarray(jnp.asarray(router_logits(30, 8).numpy()))
    assert not logits.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        routing = cm.route(logits, GATING, CAPACITY)
    expected = cm.route(router_logits(30, 8), GATING, CAPACITY)
    np.testing.assert_array_equal(routing.rows, expected.rows.numpy())


def test_the_first_array_decides():
    """In the signature's order, tensors not counted."""
    x, logits = normal((30, 16)), router_logits(30, 8)
    experts = make_experts(8, 16, 12)
    routing = cm.route(to_numpy(logits), GATING)
    assert isinstance(cm.dispatch(to_jax(x), routing), jax.Array)
    assert type(cm.dispatch(x, routing)) is np.ndarray
    named = {"router_logits": to_numpy(logits), "hidden_states": to_jax(x)}
    assert isinstance(cm.moe(experts=experts, gating=GATING, **named), jax.Array)
    mask = np.arange(30) % 2 == 0
    out = cm.moe(x, to_jax(logits), experts, GATING, token_mask=mask)
    assert isinstance(out, jax.Array)
