"""Calls of Triton's select for its tests."""

from __future__ import annotations

import torch

import capmoe_kernels as cm
import cuda_select as cs

EXPERTS, COLUMNS = 60, 4


def arguments(asked):
    """Of the operator."""
    c = asked.capacity
    return (
        *(asked.ids, asked.weights, asked.scores, asked.token_mask, asked.token_priority),
        *(asked.num_experts, asked.top_k, c.ratio, c.limit, c.rounding, c.policy),
        *("topk_first" if asked.topk_first else "score", c.max_experts_per_token),
        *(asked.rounds, c.experts_per_device or 1, c.seed, asked.kept_weight_sum),
        *(asked.layout, asked.row_alignment, asked.num_rows),
    )


def asking(tokens, experts=EXPERTS, columns=COLUMNS, seed=0, levels=3, **options):
    """Distinct experts, lower ones more popular; scores of ``levels`` + 1 values, or of many."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, experts, generator=g) + torch.linspace(2, 0, experts)
    ids = noise.argsort(dim=1, descending=True)[:, :columns].int().contiguous()
    scores, weights = torch.rand(2, tokens, columns, generator=g)
    scores = scores if levels is None else (scores * levels).round() / levels
    return cs.Asked(ids, weights, scores.contiguous(), experts, **options)


def mask(tokens):
    return torch.arange(tokens) % 3 != 1


def classes(tokens):
    return (torch.arange(tokens) % 4 - 2) * 2**61


FEATURES = {
    "dropless": {},
    "score": {"capacity": cm.Capacity(factor=1.0)},
    "keep_first": {"capacity": cm.Capacity(limit=3, policy="keep_first")},
    "keep_last": {"capacity": cm.Capacity(0.7, rounding="floor", policy="keep_last")},
    "random": {"capacity": cm.Capacity(1.0, policy="random", seed=2**40 + 7)},
    "nobody": {"capacity": cm.Capacity(limit=0)},
    "topk_first": {"capacity": cm.Capacity(0.6), "top_k": 2, "topk_first": True},
    "device": {"capacity": cm.Capacity(0.7, scope="device", experts_per_device=12)},
    "few": {"capacity": cm.Capacity(max_experts_per_token=2), "kept_weight_sum": 1.0},
    "few_of_score": {"capacity": cm.Capacity(0.8, max_experts_per_token=2), "top_k": 3},
    "reroute": {"capacity": cm.Capacity(factor=0.9), "top_k": 1, "rounds": 4},
    "reroute_dropless": {"top_k": 2, "rounds": 2},
    "mask": {"capacity": cm.Capacity(1.0), "token_mask": mask},
    "mask_limit": {"capacity": cm.Capacity(limit=9), "token_mask": mask, "layout": "padded"},
    "priority": {"capacity": cm.Capacity(0.5), "token_priority": classes},
    "padded": {"capacity": cm.Capacity(1.0), "layout": "padded", "row_alignment": 7},
    "aligned": {"capacity": cm.Capacity(1.0), "kept_weight_sum": 2.5, "row_alignment": 16},
    "everything": {
        "capacity": cm.Capacity(
            factor=0.75,
            policy="random",
            seed=2**63 - 1,
            max_experts_per_token=2,
            scope="device",
            experts_per_device=12,
        ),
        "top_k": 2,
        "rounds": 3,
        "topk_first": True,
        "token_mask": mask,
        "token_priority": classes,
        "kept_weight_sum": 1.5,
        "row_alignment": 8,
    },
}


def options_of(feature, tokens):
    """Of ``asking``, for so many tokens."""
    return {name: f(tokens) if callable(f) else f for name, f in FEATURES[feature].items()}
