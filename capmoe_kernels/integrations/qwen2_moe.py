"""Qwen2-MoE and Qwen3-Next: softmax, top-k, and a shared expert behind a sigmoid gate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import register
from .parts import Architecture, MoeParts
from .reading import setting
from .softmax_router import read_softmax_block


def read(block: nn.Module, _config: Any) -> MoeParts:
    """Parts of a ``Qwen2MoeSparseMoeBlock``."""
    expert, gate = setting(block, "shared_expert"), setting(block, "shared_expert_gate")
    return replace(read_softmax_block(block), shared=partial(_shared, expert, gate))


def _shared(expert: nn.Module, gate: nn.Module, tokens: Tensor) -> Tensor:
    out: Tensor = F.sigmoid(gate(tokens)) * expert(tokens)
    return out


register(Architecture("qwen2_moe", "Qwen2MoeSparseMoeBlock", read))
register(Architecture("qwen3_next", "Qwen3NextSparseMoeBlock", read))
