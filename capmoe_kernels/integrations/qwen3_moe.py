"""Qwen3-MoE: softmax over all experts, top-k, SwiGLU experts, no shared expert."""

from __future__ import annotations

from typing import Any

from torch import nn

from .blocks import register
from .parts import Architecture, MoeParts
from .softmax_router import read_softmax_block


def read(block: nn.Module, _config: Any) -> MoeParts:
    """Parts of a ``Qwen3MoeSparseMoeBlock``; in dense layers there is none."""
    return read_softmax_block(block)


register(Architecture("qwen3_moe", "Qwen3MoeSparseMoeBlock", read))
