"""The layer inside jax.jit and jax.vmap: the same bits as outside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import capmoe_kernels as cm
import capmoe_kernels.integrations.jax as cmj
from capmoe_kernels.integrations import xla_ffi
from cases import brief, make_experts, normal, router_logits, topk_of

E, H, F, T = 8, 16, 12, 30
GATING, CAPACITY = cm.Gating(2), cm.Capacity(1.0)
CAPACITIES = [
    None,
    cm.Capacity(1.25),
    cm.Capacity(0.7, expand="local", local_experts=(2, 6), policy="random", seed=2**40),
    cm.Capacity(1.0, reroute_rounds=2),
    cm.Capacity(limit=0),
]


def array(tensor):
    return jnp.from_dlpack(tensor.contiguous())


def same_bits(got, expected):
    """Of two trees of JAX arrays."""
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    for a, b in zip(got, expected, strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


@pytest.mark.parametrize("capacity", CAPACITIES, ids=brief)
@pytest.mark.parametrize("tokens", [T, 0])
def test_moe(capacity, tokens):
    x, logits = array(normal((tokens, H))), array(router_logits(tokens, E))
    options = {"token_mask": jnp.arange(tokens) % 3 > 0, "selection_bias": array(normal((E,)))}
    experts = make_experts(E, H, F)

    @jax.jit
    def layer(x, logits, experts, options):
        return cmj.moe(x, logits, experts, GATING, capacity, **options)

    expected = cm.moe(x, logits, experts, GATING, capacity, **options)
    same_bits(layer(x, logits, experts, options), expected)
    shape = jax.eval_shape(layer, x, logits, experts, options)
    assert (shape.shape, shape.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_the_steps(dtype, packed):
    """Between other work of XLA's, with every kind of argument; a Routing comes out."""
    x, logits = array(normal((T, H), dtype)), array(router_logits(T, E).to(dtype))
    experts = make_experts(E, H, F, dtype, bias=True)
    experts = experts.pack() if packed else experts
    mask, priority = jnp.arange(T) % 3 > 0, jnp.arange(T) % 2
    options = {"layout": "padded", "row_alignment": 4}

    def layer(api, x, logits, experts):
        masks = {"token_mask": mask, "token_priority": priority}
        routing = api.route(logits * 2, GATING, CAPACITY, **masks, **options)
        y = api.grouped_mlp(api.dispatch(x + 1, routing), experts, routing)
        return api.combine(y, routing) + x, routing

    out, routing = jax.jit(lambda *args: layer(cmj, *args))(x, logits, experts)
    assert isinstance(routing, cm.Routing)
    same_bits((out, routing), layer(cm, x, logits, experts))


def test_select():
    ids, weights = map(array, topk_of(router_logits(T, E).softmax(1), 2))
    expected = cm.select(ids, weights, E, CAPACITY)
    same_bits(jax.jit(lambda *args: cmj.select(*args, E, CAPACITY))(ids, weights), expected)


def test_weights_as_arguments_or_constants():
    x, logits = array(normal((T, H))), array(router_logits(T, E))
    made = make_experts(E, H, F, layout="interleaved", activation="swigluoai", bias=True)
    weights = [array(getattr(made, name)) for name in cmj.WEIGHTS]
    expected = cm.moe(x, logits, made, GATING, CAPACITY)

    @jax.jit
    def from_arrays(x, logits, *weights):
        experts = cmj.make_experts(*weights, activation=made.activation, layout=made.layout)
        return cmj.moe(x, logits, experts, GATING, CAPACITY)

    same_bits(from_arrays(x, logits, *weights), expected)
    closed = jax.jit(lambda x, logits: cmj.moe(x, logits, made.pack(), GATING, CAPACITY))
    same_bits(closed(x, logits), expected)
    eager = cmj.make_experts(*weights, activation=made.activation, layout=made.layout)
    same_bits(cmj.moe(x, logits, eager, GATING, CAPACITY), expected)


def test_experts_are_a_tree():
    """Mapped, moved and returned, they are experts of torch tensors again."""
    made = make_experts(E, H, F, bias=True)
    x, logits = array(normal((T, H))), array(router_logits(T, E))
    expected = cm.moe(x, logits, made, GATING)
    for experts in (made, made.pack()):
        for copy in (jax.device_put(experts), jax.jit(lambda experts: experts)(experts)):
            assert type(copy) is type(experts)
            assert type(copy.gate_up_proj) is torch.Tensor
            same_bits(cm.moe(x, logits, copy, GATING), expected)
        fetched = jax.device_get(experts)  # NumPy's arrays, as a restored checkpoint has them
        assert type(fetched.down_proj) is torch.Tensor
        same_bits(cm.moe(x, logits, fetched, GATING), expected)
    half = jax.tree.map(lambda weights: weights.astype(jnp.bfloat16), made)
    assert torch.equal(half.down_bias, made.down_bias.bfloat16())
    assert (half.activation, half.layout) == (made.activation, made.layout)


def test_strided_weights():
    """Tensors with gaps, which JAX cannot share."""
    x, logits = array(normal((T, H))), array(router_logits(T, E))
    made = make_experts(E, H + 4, F + 4)
    experts = cm.Experts(made.gate_up_proj[:, : 2 * F, :H], made.down_proj[:, :H, :F])
    out = jax.jit(lambda *args: cmj.moe(*args, GATING))(x, logits, experts)
    same_bits(out, cm.moe(x, logits, experts, GATING))


def test_vmap_is_one_call_after_the_other():
    """Each example has a capacity of its own; what is not mapped is the same for all."""
    x, logits = array(normal((3, T, H))), array(router_logits(3 * T, E, "skewed")).reshape(3, T, E)
    experts = make_experts(E, H, F)
    expected = [cm.moe(*pair, experts, GATING, CAPACITY) for pair in zip(x, logits, strict=True)]
    mapped = jax.vmap(
        lambda x, logits, experts: cmj.moe(x, logits, experts, GATING, CAPACITY),
        in_axes=(0, 0, None),
    )
    for function in (mapped, jax.jit(mapped)):
        same_bits(function(x, logits, experts), jnp.stack(expected))


def test_calls_in_a_loop():
    x, logits, experts = array(normal((T, H))), array(router_logits(T, E)), make_experts(E, H, F)
    expected = x
    for _ in range(3):
        expected = cm.moe(expected, logits, experts, GATING, CAPACITY)

    @jax.jit
    def layers(x, logits, experts):
        def body(_, x):
            return cmj.moe(x, logits, experts, GATING, CAPACITY)

        return jax.lax.fori_loop(0, 3, body, x)

    same_bits(layers(x, logits, experts), expected)


def test_settings_do_not_mix():
    """Programs that differ in nothing but a setting."""
    logits = array(router_logits(T, E))
    settings = [cm.Gating(2), cm.Gating(2, renormalize="topk"), cm.Gating(2, scaling=2.5)]
    programs = [jax.jit(lambda logits, g=gating: cmj.route(logits, g)) for gating in settings]
    for _ in range(2):
        for gating, program in zip(settings, programs, strict=True):
            same_bits(program(logits), cm.route(logits, gating))


def test_mistakes_are_named_while_tracing():
    x, logits, experts = array(normal((T, H))), array(router_logits(T, E)), make_experts(E, H, F)
    layer = jax.jit(lambda *args: cmj.moe(*args, GATING))
    with pytest.raises(ValueError, match=r"^router_logits must have shape \[30, 8\] \(T, E\)"):
        layer(x, logits[:3], experts)
    with pytest.raises(TypeError, match=r"^hidden_states must be float32, got bfloat16"):
        layer(x.astype(jnp.bfloat16), logits, experts)
    with pytest.raises(TypeError, match=r"^router_logits must be float32.*, got int32"):
        layer(x, logits.astype(jnp.int32), experts)
    with pytest.raises(TypeError, match=r"^router_logits must be float32.*, got float64"):
        jax.jit(lambda x: cmj.moe(x, np.zeros((T, E)), experts, GATING))(x)
    with pytest.raises(ValueError, match=r"^Experts\.gate_up_proj must have shape \[2, 6, 4\]"):
        jax.jit(cmj.make_experts)(jnp.ones((2, 5, 4)), jnp.ones((2, 4, 3)))
    leaf = make_experts(E, H, F)
    leaf.down_proj.requires_grad_()
    with pytest.raises(RuntimeError, match=r"^Experts\.down_proj requires grad"):
        layer(x, logits, leaf)


def test_mistakes_are_named_while_running():
    logits = array(router_logits(T, E)).at[3, 4].set(jnp.nan)
    words = r"router_logits must hold numbers below inf, got nan at \[3, 4\]"
    with pytest.raises(Exception, match=words):
        jax.block_until_ready(jax.jit(lambda logits: cmj.route(logits, GATING))(logits))


def test_there_are_no_gradients():
    x, logits, experts = array(normal((T, H))), array(router_logits(T, E)), make_experts(E, H, F)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda x: cmj.moe(x, logits, experts, GATING).sum())(x)


def test_a_program_without_its_function_says_so(monkeypatch):
    """As a program that another process has stored, and this one never traced."""
    program = jax.jit(lambda logits: cmj.route(logits, cm.Gating(3)))
    logits = array(router_logits(T, E))
    jax.block_until_ready(program(logits))
    monkeypatch.setattr(xla_ffi, "_FUNCTIONS", {})
    with pytest.raises(Exception, match="this process never traced the call"):
        jax.block_until_ready(program(logits))


def test_a_result_of_another_shape_is_refused():
    """Nothing is written where it does not fit."""
    declared = [jax.ShapeDtypeStruct((3,), jnp.float32)]
    for made in (torch.zeros(2), torch.zeros(3, dtype=torch.int32)):
        program = jax.jit(lambda x, y=made: xla_ffi.call(f"test {y}", lambda x: [y], declared, [x]))
        with pytest.raises(Exception, match=r"gave .* for float32 \[3\]"):
            jax.block_until_ready(program(jnp.zeros(3)))
