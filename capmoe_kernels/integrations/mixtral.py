"""Mixtral and MiniMax: softmax, top-k renormalised to one, and a jitter in training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from .blocks import register
from .parts import Architecture, MoeParts
from .reading import setting
from .softmax_router import read_softmax_block


def read(block: nn.Module, _config: Any) -> MoeParts:
    """Parts of a ``MixtralSparseMoeBlock``.

    Raises:
        ValueError: the block is in training with ``router_jitter_noise`` above 0.
    """
    _check_jitter(block)
    parts = read_softmax_block(block, "topk")
    return replace(parts, router_logits=partial(_logits, block, parts.router_logits))


def _logits(block: nn.Module, router_logits: Any, tokens: Tensor) -> Tensor:
    _check_jitter(block)
    logits: Tensor = router_logits(tokens)
    return logits


def _check_jitter(block: nn.Module) -> None:
    noise = setting(block, "jitter_noise")
    if block.training and noise > 0:
        raise ValueError(
            f"router_jitter_noise must be 0 in training, got {noise}: call model.eval()"
        )


register(Architecture("mixtral", "MixtralSparseMoeBlock", read))
register(Architecture("minimax", "MiniMaxSparseMoeBlock", read))
