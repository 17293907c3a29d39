"""OLMoE and FlexOlmo: softmax over all experts, top-k, SwiGLU experts, no shared expert."""

from __future__ import annotations

from typing import Any

from torch import nn

from .blocks import register
from .parts import Architecture, MoeParts
from .softmax_router import read_softmax_block


def read(block: nn.Module, _config: Any) -> MoeParts:
    """Parts of an ``OlmoeSparseMoeBlock``."""
    return read_softmax_block(block)


register(Architecture("olmoe", "OlmoeSparseMoeBlock", read))
register(Architecture("flex_olmo", "FlexOlmoSparseMoeBlock", read))
