"""Other ways to run the same experts. All are given the top-k for free; ours is timed with it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from .gpu_cases import Case

Run = Callable[[], Tensor]


class Given:
    """A case as others want it: int64 ids and bfloat16 weights of the dropless top-k."""

    def __init__(self, case: Case) -> None:
        ids, weights, _ = case.gated
        self.x = case.hidden_states
        self.gate_up, self.down = case.experts.gate_up_proj, case.experts.down_proj
        self.ids, self.weights = ids.long(), weights.to(self.x.dtype)
        self.ids32, self.weights32 = ids, weights
        self.num_experts = self.down.shape[0]


def torch_loop(given: Given) -> Run:
    """An expert after another, which experts are busy read back to the host."""

    def run() -> Tensor:
        x, out = given.x, torch.zeros_like(given.x)
        for expert in given.ids.unique().tolist():
            tokens, column = torch.where(given.ids == expert)
            gate, up = F.linear(x[tokens], given.gate_up[expert]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, given.down[expert])
            out.index_add_(0, tokens, y * given.weights[tokens, column, None])
        return out

    return run


def torch_grouped_mm(given: Given) -> Run:
    """Sort by expert, torch's own grouped product twice, sum; no wait for the device."""
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    up_weights, down_weights = given.gate_up.transpose(1, 2), given.down.transpose(1, 2)
    experts = torch.arange(given.num_experts, device=given.x.device)

    def run() -> Tensor:
        tokens, top_k = given.ids.shape
        by_expert = given.ids.flatten().sort(stable=True)
        ends = torch.searchsorted(by_expert.values, experts, right=True, out_int32=True)
        gate, up = product(given.x[by_expert.indices // top_k], up_weights, offs=ends).chunk(2, -1)
        y = product(F.silu(gate) * up, down_weights, offs=ends)
        y = torch.empty_like(y).index_copy_(0, by_expert.indices, y)
        return (y.view(tokens, top_k, -1) * given.weights[..., None]).sum(1)

    return run


def transformers_experts(given: Given) -> Run:
    from transformers.integrations.moe import grouped_mm_experts_forward

    module = SimpleNamespace(
        gate_up_proj=given.gate_up,
        down_proj=given.down,
        num_experts=given.num_experts,
        has_gate=True,
        has_bias=False,
        is_transposed=False,
        has_post_expert_norm=False,
        _is_expert_parallel=False,
        _apply_gate=lambda y: F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
    )
    return lambda: grouped_mm_experts_forward(module, given.x, given.ids, given.weights)


def liger(given: Given) -> Run:
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    arguments = (given.x, given.gate_up, given.down, given.ids32, given.weights)
    return lambda: LigerFusedMoEFunction.apply(*arguments)


def vllm(given: Given) -> Run:
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

    arguments = (given.x, given.gate_up, given.down, given.weights32, given.ids32)
    return lambda: fused_experts(*arguments)


def sglang(given: Given) -> Run:
    from sglang.srt.layers.moe.fused_moe_triton.fused_moe import outplace_fused_experts

    arguments = (given.x, given.gate_up, given.down, given.weights32, given.ids32)
    return lambda: outplace_fused_experts(*arguments)


RIVALS: dict[str, Callable[[Given], Run]] = {
    "torch loop": torch_loop,
    "torch grouped_mm": torch_grouped_mm,
    "transformers": transformers_experts,
    "liger": liger,
    "vllm": vllm,
    "sglang": sglang,
}
EAGER = {"torch loop"}  # waits for the device, so it is no CUDA graph
