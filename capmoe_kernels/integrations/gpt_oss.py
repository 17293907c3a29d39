"""GPT-OSS: softmax over the top-k alone, biases everywhere, a clamped SwiGLU of its own.

A softmax over the top-k logits is the softmax over all of them, renormalised over the top-k.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..experts import Experts
from ..gating import Gating
from .blocks import register
from .expert_weights import check_one_process, expert_weight
from .parts import Architecture, MoeParts
from .reading import plain_weight, require_setting, setting


def read(block: nn.Module, _config: Any) -> MoeParts:
    """Parts of a ``GptOssMLP``. The kernels' layout makes a copy of the experts' weights.

    Raises:
        ValueError: ``swiglu_alpha`` or ``swiglu_limit`` is another than the kernels', or the
            experts are quantised or not all here.
    """
    router: Any = block.router
    weight = plain_weight(router, "weight")
    plain_weight(router, "bias")
    top_k = setting(router, "top_k")
    experts = _read_experts(setting(block, "experts"))
    # Transformers 4 deals out the experts under tp_plan="auto", and leaves no other sign of it.
    if experts.num_experts != weight.shape[0]:
        raise ValueError(
            f"experts must be all {weight.shape[0]} that the router chooses among, got"
            f" {experts.num_experts}: load the model without tp_plan or expert parallelism"
        )
    # Transformers 4's router scatters its weights over all experts.
    scattered = not hasattr(block.experts, "is_transposed")
    return MoeParts(
        Gating(top_k=top_k, renormalize="topk"),
        partial(_logits, router),
        experts,
        wrap=partial(_with_scores, top_k, scattered),
    )


def _read_experts(module: nn.Module) -> Experts:
    if "Mxfp4" in type(module).__name__:
        raise ValueError(
            "the experts are quantised to MXFP4, which the kernels don't read: load the model with"
            " quantization_config=Mxfp4Config(dequantize=True)"
        )
    require_setting("swiglu_alpha", setting(module, "alpha"), (1.702,))
    require_setting("swiglu_limit", setting(module, "limit"), (7.0,))
    check_one_process(module)
    return Experts(
        expert_weight(module, "gate_up_proj", transposed=True),
        expert_weight(module, "down_proj", transposed=True),
        plain_weight(module, "gate_up_proj_bias").detach(),  # of which concat makes a copy
        plain_weight(module, "down_proj_bias"),
        "swigluoai",
        "interleaved",
    )


def _logits(router: nn.Module, tokens: Tensor) -> Tensor:
    weight: Any = router.weight
    bias: Any = router.bias
    return F.linear(tokens, weight, bias)


def _with_scores(
    top_k: int, scattered: bool, output: Tensor, router_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """The router's own weights beside the output: [T, k], or [T, E] where ``scattered``."""
    logits, indices = router_logits.topk(top_k, dim=-1)
    scores = logits.softmax(1, dtype=logits.dtype)
    if scattered:
        scores = torch.zeros_like(router_logits).scatter_(1, indices, scores)
    return output, scores


register(Architecture("gpt_oss", "GptOssMLP", read))
