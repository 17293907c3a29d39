"""What the pictures of docs/concepts.md show: the page's own example, routed by the library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import capmoe_kernels as cm

PAGE = Path(__file__).parents[1] / "docs/concepts.md"


def numbers() -> dict[str, Any]:
    """Whole numbers, and the gate's scores in percent, as JSON has them."""
    first_block = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    names: dict[str, Any] = {"print": lambda *_: None}
    exec(first_block, names)
    logits, gating, rules = names["router_logits"], names["gating"], names["rules"]
    tokens, experts = logits.shape
    routings = {name: cm.route(logits, gating, rule) for name, rule in rules.items()}
    drop = routings["Token Drop"]
    padded = cm.route(logits, gating, rules["Token Drop"], layout="padded")
    return {
        "tokens": tokens,
        "experts": experts,
        "experts_per_device": rules["device scope"].experts_per_device,
        "capacity": cm.expert_capacity(tokens, experts, gating.top_k, rules["Token Drop"].factor),
        "percent": (logits.softmax(1) * 100).round().int().tolist(),
        "demand": drop.demand_per_expert.tolist(),
        "kept": {name: _kept(routing) for name, routing in routings.items()},
        "row_tokens": drop.row_tokens.tolist(),
        "expert_offsets": drop.expert_offsets.tolist(),
        "tokens_per_expert": drop.tokens_per_expert.tolist(),
        "padded_tokens": padded.row_tokens.tolist(),
    }


def _kept(routing: cm.Routing) -> list[list[int]]:
    """[token, expert] of every pair that has a row."""
    tokens, columns = torch.nonzero(routing.rows >= 0, as_tuple=True)
    experts = routing.expert_ids[tokens, columns]
    return sorted(
        [token, expert] for token, expert in zip(tokens.tolist(), experts.tolist(), strict=True)
    )
