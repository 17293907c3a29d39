"""Gate, select and slots: ours beside the gates of two frameworks that bound an expert's load."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import capmoe_kernels as cm

from .cpu_peers_rivals import OURS, installed
from .cpu_peers_sampling import interleaved

TOKENS, EXPERTS, TOP_K, FACTOR = 4096, 64, 8, 1.25
MEGATRON, DEEPSPEED = "Megatron-Core", "DeepSpeed"
WEIGHT_ERROR = 1e-5


def ours(logits: Tensor) -> Callable[[], cm.Routing]:
    gating, capacity = cm.Gating(top_k=TOP_K), cm.Capacity(factor=FACTOR)
    return lambda: cm.route(logits, gating, capacity)


def megatron(logits: Tensor) -> Callable[[], Any]:
    """Gives a mask and weights; its rows are worked out later, in permute, which is not timed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.transformer.moe import moe_utils

    def run() -> Any:
        weights, chosen = moe_utils.topk_routing_with_score_function(
            logits, TOP_K, use_pre_softmax=True
        )
        return moe_utils.apply_router_token_dropping(weights, chosen, TOP_K, FACTOR, "probs")

    return run


def deepspeed(logits: Tensor) -> Callable[[], Any]:
    """With the routes as a list; its dense form takes a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.moe.sharded_moe import topkgating

    return lambda: topkgating(
        logits, TOP_K, FACTOR, 0, drop_policy="probs", drop_tokens=True, sparse_routes=True
    )


def weights_of(name: str, answer: Any) -> Tensor:
    """[T, E]: what each pair weighs, 0 if it is not kept. DeepSpeed's sum to one per token."""
    dense = torch.zeros(TOKENS, EXPERTS, dtype=torch.float64)
    if name == MEGATRON:
        return answer[0].double() * answer[1]
    if name == DEEPSPEED:
        ids, weights = answer[3].T, answer[5].T
    else:
        ids, weights = answer.expert_ids, answer.weights
        ids = ids.masked_fill(answer.rows < 0, -1)
    kept = ids >= 0
    return dense.scatter_add_(1, ids.clamp_min(0).long(), (weights * kept).double())


def expected(logits: Tensor) -> Tensor:
    """The same in float64: an expert's best C of those who chose it."""
    scores = logits.double().softmax(-1)
    top = scores.topk(TOP_K)
    chosen = torch.zeros_like(scores).scatter_(1, top.indices, top.values)
    limit = math.ceil(TOKENS * TOP_K / EXPERTS * FACTOR)
    best = chosen.sort(dim=0, descending=True, stable=True).indices[:limit]
    return torch.zeros_like(chosen).scatter_(0, best, chosen.gather(0, best))


def complaint(name: str, answer: Any, right: Tensor) -> str | None:
    got = weights_of(name, answer)
    if name == DEEPSPEED:
        right = right / right.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).eps)
    misplaced = int(((got > 0) != (right > 0)).sum())
    if misplaced:
        return f"{misplaced} pairs kept or dropped wrongly"
    error = float((got - right).abs().max())
    return None if error <= WEIGHT_ERROR else f"weights off by {error:.1e}"


def measure(seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    logits = torch.randn(TOKENS, EXPERTS) + torch.randn(EXPERTS)  # log-normal: capacity binds
    right = expected(logits)
    wrong: dict[str, str] = {}
    calls: dict[str, Callable[[], Any]] = {}
    gates = {OURS: ("torch", ours), MEGATRON: ("megatron", megatron)}
    gates[DEEPSPEED] = ("deepspeed", deepspeed)
    for name, (module, prepare) in gates.items():
        if not installed(module):
            wrong[name] = f"{module} is not installed"
            continue
        try:
            call = prepare(logits)
            said = complaint(name, call(), right)
        except Exception as error:  # of someone else's package: not a reason to stop
            if name == OURS:
                raise
            said = str(error).splitlines()[0][:100]
        if said is None:
            calls[name] = call
        else:
            wrong[name] = said
    times, rounds = interleaved(calls, seconds, least=5)
    ms = {name: 1e3 * taken for name, taken in times.items()}
    dropped = 1 - int((right > 0).sum()) / (TOKENS * TOP_K)
    return {"ms": ms, "wrong": wrong, "rounds": rounds, "dropped": dropped}
