"""JAX arrays in, JAX arrays out, in eager code and inside ``jax.jit``.

    python examples/jax_arrays.py

Outside of ``jax.jit`` every public function takes arrays of any library that has ``__dlpack__`` and
``__array_namespace__``, such as NumPy, shares their memory and returns the caller's kind. Inside,
``capmoe_kernels.integrations.jax`` has the same functions. Needs ``pip install jax``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

import capmoe_kernels as cm
import capmoe_kernels.integrations.jax as cm_jax

TOKENS, EXPERTS, HIDDEN, INNER = 96, 8, 32, 64


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    experts = cm.Experts(
        jax.random.normal(keys[0], (EXPERTS, 2 * INNER, HIDDEN)) * HIDDEN**-0.5,
        jax.random.normal(keys[1], (EXPERTS, HIDDEN, INNER)) * INNER**-0.5,
    )
    hidden_states = jax.random.normal(keys[2], (TOKENS, HIDDEN))
    router = jax.random.normal(keys[3], (HIDDEN, EXPERTS)) * HIDDEN**-0.5
    router_logits = hidden_states @ router + jnp.linspace(1, -1, EXPERTS)
    gating = cm.Gating(top_k=2)

    for capacity in (None, cm.Capacity(factor=1.0)):
        out = cm.moe(hidden_states, router_logits, experts, gating, capacity)
        routing = cm.route(router_logits, gating, capacity)  # a tuple of JAX arrays
        assert isinstance(out, jax.Array)
        assert isinstance(routing.rows, jax.Array)
        loads = routing.tokens_per_expert
        print("dropless" if capacity is None else f"factor {capacity.factor}")
        print("  tokens by expert", loads.tolist())
        print(f"  busiest over mean {loads.max() / loads.mean():.2f}")
        print(f"  output {out.dtype}{list(out.shape)}, of mean size {jnp.abs(out).mean():.3f}")

    @jax.jit
    def layer(hidden_states: jax.Array, router: jax.Array, experts: cm.Experts) -> jax.Array:
        logits = hidden_states @ router + jnp.linspace(1, -1, EXPERTS)
        return cm_jax.moe(hidden_states, logits, experts, gating, cm.Capacity(factor=1.0))

    inside = layer(hidden_states, router, experts)
    print(f"largest difference inside jax.jit {jnp.abs(inside - out).max():.1e}")

    weights, ids = jax.lax.top_k(jax.nn.softmax(router_logits), 2)  # or with a top-k of your own
    own = cm.select(ids, weights, EXPERTS, cm.Capacity(factor=1.0))
    print("the same loads from jax.lax.top_k:", bool((own.tokens_per_expert == loads).all()))


if __name__ == "__main__":
    main()
