"""What does each op cost, on each backend? ``make bench``."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from capmoe_kernels.bounds import select_rows

# tokens, experts, top_k, hidden, intermediate
SHAPES = {
    "decode": (16, 64, 8, 256, 128),
    "prefill": (4096, 64, 8, 256, 128),
}
GATE = ("softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0)
BACKENDS = {"dispatcher": torch.ops.capmoe, "reference": reference}


def select_arguments(tokens, experts, top_k, factor=(5, 4)):
    rows = select_rows(tokens, experts, top_k, top_k, factor, None, "ceil", 1, "packed", 1)
    budget = (factor, None, "ceil", "score", "score", None, 1, 1, 0, None, "packed", 1, rows)
    return (None, None, experts, top_k, *budget)


def inputs(shape):
    tokens, experts, top_k, hidden, intermediate = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    popularity = torch.randn(experts, generator=generator)  # log-normal load
    logits = torch.randn(tokens, experts, generator=generator) + popularity
    hidden_states = torch.randn(tokens, hidden, generator=generator).bfloat16()
    up = torch.randn(experts, 2 * intermediate, hidden, generator=generator) * hidden**-0.5
    down = torch.randn(experts, hidden, intermediate, generator=generator) * intermediate**-0.5
    ids, weights, scores = reference.gate(logits, None, top_k, *GATE)
    chosen = reference.select(ids, weights, scores, *select_arguments(tokens, experts, top_k))
    routing = cm.Routing(*chosen)
    mlp = (hidden_states, up.bfloat16(), down.bfloat16(), None, None)
    mlp += (routing.expert_offsets, routing.tokens_per_expert, routing.row_tokens, "silu", "concat")
    return {
        "gate": (logits, None, top_k, *GATE),
        "select": (ids, weights, scores, *select_arguments(tokens, experts, top_k)),
        "dispatch": (hidden_states, routing.row_tokens),
        "grouped_mlp": mlp,
        "combine": (
            torch.randn(routing.row_tokens.shape[0], hidden, generator=generator).bfloat16(),
            routing.rows,
            routing.weights,
        ),
    }


def live(op, results, arguments):
    """Rows of no expert are unspecified, so they are not compared."""
    if op not in ("dispatch", "grouped_mlp"):
        return results
    row_tokens = arguments[1] if op == "dispatch" else arguments[7]
    return results[row_tokens >= 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["gate", "select", "dispatch", "grouped_mlp", "combine"])
def test_op(op, shape, backend, measure):
    arguments = inputs(shape)[op]
    expected = live(op, getattr(reference, op)(*arguments), arguments)
    got = live(op, getattr(BACKENDS[backend], op)(*arguments), arguments)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=5e-2)
    tokens, experts, top_k, hidden, intermediate = SHAPES[shape]
    sizes = f"T={tokens} E={experts} k={top_k} H={hidden} F={intermediate}"
    measure(getattr(BACKENDS[backend], op), arguments, f"{op} {shape} {sizes}")
