"""JAX in processes of their own: one core is enough, and programs that another process compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROGRAM = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
import capmoe_kernels as cm, capmoe_kernels.integrations.jax as cmj

E, H, F, T = 4, 256, 64, 1000  # a megabyte of tokens: what JAX hands over in the background
random = np.random.default_rng(0)
made = lambda *shape: random.normal(size=shape).astype(np.float32) / 16
experts = cm.Experts(made(E, 2 * F, H), made(E, H, F))
x, logits = jnp.asarray(made(T, H)), jnp.asarray(made(T, E))

def layers(factor):
    def several(x, logits, experts):
        arguments = experts, cm.Gating(2), cm.Capacity(factor)
        return sum(cmj.moe(jnp.abs(x * k), logits, *arguments) for k in (1, 2, 3))
    return several

factors = (0.5, 1.0) if sys.argv[1] == "first" else (1.0, 0.5)
for factor in factors:
    program = jax.jit(layers(factor))
    outs = [program(x + i, logits, experts) for i in range(4)]  # in flight at once
    for i, out in enumerate(outs):
        alone = layers(factor)(x + i, logits, experts)
        assert np.array_equal(out, alone), (factor, i)
print("done")
"""


def run(order, cache):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, order],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,  # jax.pure_callback would wait for ever here
    )
    assert done.stdout == "done\n", done.stdout + done.stderr
    return {path.name for path in cache.iterdir() if path.name.startswith("jit_several")}


def test_one_core_and_stored_programs(tmp_path):
    """The second process runs what the first has compiled, though it asks in another order."""
    stored = run("first", tmp_path)
    assert len([name for name in stored if name.endswith("-cache")]) == 2
    assert run("second", tmp_path) == stored
