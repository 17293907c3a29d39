"""What every public function refuses, by name, and that nothing is converted in silence."""

from __future__ import annotations

import math

import pytest
import torch

import capmoe_kernels as cm
from cases import router_logits

META = torch.device("meta")


def wrong_route():
    logits = router_logits(6, 4)
    gating, device = cm.Gating(2), cm.Capacity(scope="device", experts_per_device=3)
    local = cm.Capacity(expand="local", local_experts=(2, 5))
    nan, inf = logits.clone(), logits.clone()
    nan[1, 2], inf[5, 0] = math.nan, math.inf
    return [
        ((logits[0], gating), {}, ValueError, "router_logits"),
        ((logits.double(), gating), {}, TypeError, "router_logits"),
        ((logits.long(), gating), {}, TypeError, "router_logits"),
        ((logits.tolist(), gating), {}, TypeError, "router_logits"),
        ((None, gating), {}, TypeError, "router_logits"),
        ((nan, gating), {}, ValueError, r"router_logits.*nan.*\[1, 2\]"),
        ((inf, gating), {}, ValueError, r"router_logits.*inf.*\[5, 0\]"),
        (
            (logits.clone().requires_grad_(), gating),
            {},
            RuntimeError,
            "router_logits requires grad",
        ),
        ((logits, cm.Gating(5)), {}, ValueError, "top_k"),
        ((logits, cm.Gating(1, num_groups=3)), {}, ValueError, "num_groups"),
        ((logits, cm.Gating(3, num_groups=2, topk_groups=1)), {}, ValueError, "top_k"),
        ((logits, gating, local), {}, ValueError, "local_experts"),
        ((logits, gating, device), {}, ValueError, "experts_per_device"),
        ((logits, gating), {"token_mask": torch.ones(6)}, TypeError, "token_mask"),
        (
            (logits, gating),
            {"token_mask": torch.ones(5, dtype=torch.bool)},
            ValueError,
            "token_mask",
        ),
        ((logits, gating), {"token_mask": [True] * 6}, TypeError, "token_mask"),
        ((logits, gating), {"token_priority": torch.ones(6)}, TypeError, "token_priority"),
        (
            (logits, gating),
            {"token_priority": torch.ones(6, 1).long()},
            ValueError,
            "token_priority",
        ),
        ((logits, gating), {"selection_bias": torch.ones(3)}, ValueError, "selection_bias"),
        ((logits, gating), {"selection_bias": torch.ones(4).half()}, TypeError, "selection_bias"),
        (
            (logits, gating),
            {"selection_bias": torch.full((4,), math.nan)},
            ValueError,
            "selection_bias",
        ),
        (
            (logits, gating),
            {"selection_bias": torch.ones(4, device=META)},
            ValueError,
            "selection_bias",
        ),
        (
            (logits, gating),
            {"selection_bias": torch.ones(4).requires_grad_()},
            RuntimeError,
            "selection_bias requires grad",
        ),
        ((logits, gating), {"layout": "cube"}, ValueError, "layout"),
        ((logits, gating), {"row_alignment": 0}, ValueError, "row_alignment"),
        ((logits, gating), {"row_alignment": 2.0}, TypeError, "row_alignment"),
        (
            (logits, gating, cm.Capacity(1.0, scope="device", experts_per_device=2)),
            {"layout": "padded"},
            ValueError,
            "layout",
        ),
    ]


@pytest.mark.parametrize(("args", "kwargs", "error", "words"), wrong_route())
def test_route_refuses(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        cm.route(*args, **kwargs)


def wrong_select():
    ids, weights = torch.tensor([[0, 1]] * 6), torch.ones(6, 2)
    nan = weights.clone()
    nan[2, 1] = math.nan
    expand = cm.Capacity(expand="rank", extra=1)
    local = cm.Capacity(expand="local", local_experts=(0, 1))
    device = cm.Capacity(scope="device", experts_per_device=3)
    return [
        ((ids[0], weights, 4), {}, ValueError, "topk_ids"),
        ((ids.short(), weights, 4), {}, TypeError, "topk_ids"),
        ((ids.float(), weights, 4), {}, TypeError, "topk_ids"),
        ((ids, weights[:5], 4), {}, ValueError, "topk_weights"),
        ((ids, weights.half(), 4), {}, TypeError, "topk_weights"),
        ((ids, weights.double(), 4), {}, TypeError, "topk_weights"),
        ((ids, weights.to(META), 4), {}, ValueError, "topk_weights"),
        ((ids, nan, 4), {}, ValueError, r"topk_weights.*\[2, 1\]"),
        (
            (ids, weights.clone().requires_grad_(), 4),
            {},
            RuntimeError,
            "topk_weights requires grad",
        ),
        ((ids, weights, 0), {}, ValueError, "num_experts"),
        ((ids, weights, 4.0), {}, TypeError, "num_experts"),
        ((ids, weights, True), {}, TypeError, "num_experts"),
        ((ids, weights, 4), {"scores": weights[:, :1]}, ValueError, "scores"),
        ((ids, weights, 4), {"scores": weights.bfloat16()}, TypeError, "scores"),
        ((ids, weights, 4), {"scores": nan}, ValueError, "scores"),
        ((ids, weights, 4), {"scores": weights / 0}, ValueError, "scores"),
        ((ids, weights, 4), {"token_mask": torch.ones(6)}, TypeError, "token_mask"),
        ((ids, weights, 4), {"token_priority": torch.ones(5).long()}, ValueError, "token_priority"),
        ((ids, weights, 4, expand), {}, ValueError, "expand"),
        ((ids, weights, 4, local), {}, ValueError, "expand"),
        ((ids, weights, 4, cm.Capacity(1.0, reroute_rounds=2)), {}, ValueError, "reroute_rounds"),
        ((ids, weights, 4, device), {}, ValueError, "experts_per_device"),
        ((ids, weights, 4), {"layout": ""}, ValueError, "layout"),
        ((ids, weights, 4), {"row_alignment": -1}, ValueError, "row_alignment"),
    ]


@pytest.mark.parametrize(("args", "kwargs", "error", "words"), wrong_select())
def test_select_refuses(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        cm.select(*args, **kwargs)
