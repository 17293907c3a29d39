"""A routing that nobody made, and the ops' own border: refused in words, never a crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import capmoe_kernels as cm
from cases import make_experts, normal, router_logits

GATING = cm.Gating(top_k=2)
ROUTING = cm.route(router_logits(6, 4), GATING)  # 12 rows
LOWEST = -(2**31)


def call(name, routing):
    rows = normal((12, 8))
    if name == "dispatch":
        return cm.dispatch(normal((6, 8)), routing)
    if name == "combine":
        return cm.combine(rows, routing)
    return cm.grouped_mlp(rows, make_experts(4, 8, 5), routing)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


WRONG = [
    ("row_tokens", torch.full((12,), LOWEST, dtype=torch.int32), ValueError),
    ("row_tokens", torch.full((12,), 6, dtype=torch.int32), ValueError),
    ("row_tokens", torch.zeros(3, 4, dtype=torch.int32), ValueError),
    ("row_tokens", torch.zeros(12), TypeError),
    ("row_tokens", None, TypeError),
    ("rows", torch.full((6, 2), -5, dtype=torch.int32), ValueError),
    ("rows", torch.full((6, 2), 12, dtype=torch.int32), ValueError),
    ("rows", torch.zeros(6, 2, dtype=torch.int64), TypeError),
    ("rows", None, TypeError),
    ("weights", torch.ones(6, 2).half(), TypeError),
    ("weights", torch.ones(6, 3), ValueError),
    ("expert_offsets", torch.full((5,), -1, dtype=torch.int32), ValueError),
    ("expert_offsets", torch.full((5,), 2**31 - 1, dtype=torch.int32), ValueError),
    ("expert_offsets", torch.zeros(5, dtype=torch.int32), ValueError),  # experts would overlap
    ("expert_offsets", torch.zeros(4, dtype=torch.int32), ValueError),
    ("tokens_per_expert", ints(12, 12, 12, 12), ValueError),
    ("tokens_per_expert", ints(-1, -1, -1, -1), ValueError),
    ("tokens_per_expert", ints(1, 1, 1, 1).long(), TypeError),
]


@pytest.mark.parametrize("name", ["dispatch", "combine", "grouped_mlp"])
@pytest.mark.parametrize(("field", "value", "error"), WRONG)
def test_a_wrong_routing_is_refused(backend, name, field, value, error):
    with pytest.raises(error, match=rf"routing\.{field}"):
        call(name, ROUTING._replace(**{field: value}))


def test_weights_that_require_grad_are_refused(backend):
    routing = ROUTING._replace(weights=ROUTING.weights.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=r"routing\.weights requires grad"):
        call("combine", routing)


@pytest.mark.parametrize("shape", [(4, 0, 5), (4, 5, 0), (0, 4, 5)])
def test_experts_without_experts_hidden_or_width_are_refused(shape):
    num_experts, hidden, width = shape
    up, down = torch.zeros(num_experts, 2 * width, hidden), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"Experts.down_proj must have E, H and F of at least 1"):
        cm.Experts(up, down)


def test_more_rows_than_32_bits_can_name_are_refused(backend):
    with pytest.raises(ValueError, match=r"4294967296 rows.*row_alignment"):
        cm.route(router_logits(3000, 4096), cm.Gating(top_k=2), row_alignment=2**20)


def test_an_array_with_negative_strides_is_refused():
    backwards = np.zeros((3, 4), dtype=np.float32)[::-1]
    with pytest.raises(ValueError, match="negative strides"):
        cm.route(backwards, GATING)


TD = ("ceil", "score", "score", None, 1, 1, 0, None, "packed", 1, 12)
NAMES = ("rounding", "policy", "expand_priority", "max_experts_per_token", "reroute_rounds")
NAMES += ("experts_per_budget", "seed", "kept_weight_sum", "layout", "row_alignment", "num_rows")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row_alignment": 2**62}, "row_alignment"),
        ({"row_alignment": 0}, "row_alignment"),
        ({"max_experts_per_token": -1}, "max_experts_per_token"),
        ({"reroute_rounds": 0}, "reroute_rounds"),
        ({"experts_per_budget": 3}, "experts_per_budget"),
        ({"layout": "padded", "experts_per_budget": 4}, "layout"),
        ({"layout": "padded", "num_rows": 13}, "num_rows"),
        ({"num_rows": 11}, "num_rows"),
        ({"num_rows": -1}, "num_rows"),
        ({"policy": "best"}, "policy"),
    ],
)
def test_the_cpu_op_guards_its_memory(changes, words):
    if cm.backends().serving["cpu"] != "cpu":
        pytest.skip("the reference writes through PyTorch, which guards its own")
    arguments = {**dict(zip(NAMES, TD, strict=True)), **changes}
    ids, ones = torch.full((6, 2), 3, dtype=torch.int32), torch.ones(6, 2)
    ids[:, 1] = 2
    with pytest.raises(RuntimeError, match=words):
        torch.ops.capmoe.select(ids, ones, ones, None, None, 4, 2, None, None, *arguments.values())


def test_nothing_waits_for_the_device():
    """Reading a value of a fake tensor raises: so routing reads none, masks and all."""
    from capmoe_kernels import reference

    gate = (2, "sigmoid", "topk", 2.0, 2, 1, "top2_sum", "weight", "local", 0, 0, 2)
    rest = (8, 2, (5, 4), None, "ceil", "random", "topk_first", 2, 1, 2, 7, 1.0, "packed", 4, 99)
    with FakeTensorMode():
        mask, priority = torch.ones(6, dtype=torch.bool), torch.ones(6, dtype=torch.int64)
        chosen = reference.gate(torch.zeros(6, 8), torch.zeros(8), *gate)
        routing = cm.Routing(*reference.select(*chosen, mask, priority, *rest))
        assert routing.row_tokens.shape == (99,)
        public = cm.route(torch.zeros(6, 8), GATING, cm.Capacity(factor=1.0), token_mask=mask)
        reference.dispatch(torch.zeros(6, 3), public.row_tokens)
        reference.combine(torch.zeros(12, 3), public.rows, public.weights)
