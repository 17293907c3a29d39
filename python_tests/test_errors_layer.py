"""What the layer's functions and Experts refuse, by name."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from cases import make_experts, normal, router_logits

META = torch.device("meta")


def good():
    """Arguments that work, by name."""
    routing = cm.route(router_logits(6, 4), cm.Gating(2))
    return {
        "logits": router_logits(6, 4),
        "x": normal((6, 8)),
        "experts": make_experts(4, 8, 5, bias=True),
        "ids": torch.tensor([[0, 1]] * 6),
        "weights": torch.ones(6, 2),
        "routing": routing,
        "rows": normal((12, 8)),
    }


WRONG_LAYER = [
    ("dispatch", {"x": normal((5, 8))}, ValueError, "hidden_states"),
    ("dispatch", {"x": normal((6,))}, ValueError, "hidden_states"),
    ("dispatch", {"x": normal((6, 8)).double()}, TypeError, "hidden_states"),
    ("dispatch", {"x": normal((6, 8)).to(META)}, ValueError, "hidden_states"),
    (
        "dispatch",
        {"x": normal((6, 8)).requires_grad_()},
        RuntimeError,
        "hidden_states requires grad",
    ),
    ("dispatch", {"routing": (1, 2)}, TypeError, "routing"),
    ("grouped_mlp", {"rows": normal((11, 8))}, ValueError, "x must"),
    ("grouped_mlp", {"rows": normal((12, 7))}, ValueError, "x must"),
    ("grouped_mlp", {"rows": normal((12, 8), torch.float16)}, TypeError, "x must"),
    ("grouped_mlp", {"rows": normal((12, 8)).to(META)}, ValueError, "x must"),
    ("grouped_mlp", {"rows": normal((12, 8)).requires_grad_()}, RuntimeError, "x requires grad"),
    ("grouped_mlp", {"experts": make_experts(5, 8, 5)}, ValueError, "experts"),
    ("grouped_mlp", {"experts": None}, TypeError, "experts"),
    ("grouped_mlp", {"routing": None}, TypeError, "routing"),
    ("combine", {"rows": normal((11, 8))}, ValueError, "y must"),
    ("combine", {"rows": normal((12, 8)).double()}, TypeError, "y must"),
    ("combine", {"rows": normal((12, 8)).to(META)}, ValueError, "y must"),
    ("combine", {"rows": normal((12, 8)).requires_grad_()}, RuntimeError, "y requires grad"),
    ("combine", {"routing": []}, TypeError, "routing"),
    ("moe", {"x": normal((5, 8))}, ValueError, "router_logits|hidden_states"),
    ("moe", {"x": normal((6, 9))}, ValueError, "hidden_states"),
    ("moe", {"x": normal((6, 8), torch.bfloat16)}, TypeError, "hidden_states"),
    ("moe", {"x": None}, TypeError, "hidden_states"),
    ("moe", {"x": torch.tensor(1.0)}, ValueError, "hidden_states"),
    ("moe", {"x": normal((6, 8)).requires_grad_()}, RuntimeError, "hidden_states requires grad"),
    ("moe", {"logits": router_logits(6, 5)}, ValueError, "router_logits"),
    ("moe", {"logits": router_logits(6, 4).to(META)}, ValueError, "router_logits"),
    ("moe", {"logits": router_logits(6, 4) * math.nan}, ValueError, "router_logits"),
    (
        "moe",
        {"logits": router_logits(6, 4).requires_grad_()},
        RuntimeError,
        "router_logits requires",
    ),
    ("moe", {"experts": "silu"}, TypeError, "experts"),
]


def call(name, arguments):
    a = arguments
    gating, capacity = cm.Gating(2), cm.Capacity(1.0)
    return {
        "dispatch": lambda: cm.dispatch(a["x"], a["routing"]),
        "grouped_mlp": lambda: cm.grouped_mlp(a["rows"], a["experts"], a["routing"]),
        "combine": lambda: cm.combine(a["rows"], a["routing"]),
        "moe": lambda: cm.moe(a["x"], a["logits"], a["experts"], gating, capacity),
    }[name]()


@pytest.mark.parametrize(("name", "wrong", "error", "words"), WRONG_LAYER)
def test_layer_refuses(name, wrong, error, words):
    call(name, good())
    with pytest.raises(error, match=words):
        call(name, good() | wrong)


@pytest.mark.parametrize("field", ["gate_up_proj", "down_proj", "gate_up_bias", "down_bias"])
def test_experts_that_require_grad(field):
    arguments = good()
    getattr(arguments["experts"], field).requires_grad_()
    for name in ["moe", "grouped_mlp"]:
        with pytest.raises(RuntimeError, match=f"Experts.{field} requires grad"):
            call(name, arguments)
        with torch.no_grad():
            call(name, arguments)


UP, DOWN = torch.zeros(4, 10, 8), torch.zeros(4, 8, 5)
WRONG_EXPERTS = [
    ((UP, DOWN), {"activation": "swish"}, ValueError, "activation"),
    ((UP, DOWN), {"layout": "blocked"}, ValueError, "layout"),
    (
        (UP[:, :5], DOWN),
        {"activation": "relu_no_mul", "layout": "interleaved"},
        ValueError,
        "layout",
    ),
    ((UP[:, :5], DOWN), {}, ValueError, "gate_up_proj"),
    ((UP, DOWN), {"activation": "relu_no_mul"}, ValueError, "gate_up_proj"),
    ((UP[:3], DOWN), {}, ValueError, "gate_up_proj"),
    ((UP[:, :, :7], DOWN), {}, ValueError, "gate_up_proj"),
    ((UP.mT, DOWN), {}, ValueError, "gate_up_proj"),
    ((UP.half(), DOWN), {}, TypeError, "gate_up_proj"),
    ((UP.double(), DOWN.double()), {}, TypeError, "down_proj"),
    ((UP, DOWN[0]), {}, ValueError, "down_proj"),
    ((UP[:0], DOWN[:0]), {}, ValueError, "down_proj"),
    ((UP.to(META), DOWN), {}, ValueError, "gate_up_proj"),
    ((UP, DOWN, torch.zeros(4, 5)), {}, ValueError, "gate_up_bias"),
    ((UP, DOWN, torch.zeros(4, 10).half()), {}, TypeError, "gate_up_bias"),
    ((UP, DOWN, None, torch.zeros(4, 5)), {}, ValueError, "down_bias"),
    ((UP, DOWN, None, torch.zeros(4, 8, device=META)), {}, ValueError, "down_bias"),
    ((UP.tolist(), DOWN), {}, TypeError, "gate_up_proj"),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "words"), WRONG_EXPERTS)
def test_experts_refuse(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        cm.Experts(*args, **kwargs)
