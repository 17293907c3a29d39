"""What ``bench.expert_parallel`` runs: tokens, router logits, experts, and capacities."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import NamedTuple

import torch
from torch import Tensor

import capmoe_kernels as cm
from capmoe_kernels.distributed import Placement

FACTORS = (2.0, 1.5, 1.0)


@dataclass(frozen=True, eq=False)
class Case:
    """A layer: what all ranks' tokens are, and all experts.

    Attributes:
        hidden_states, router_logits: [D, T, H] and [D, T, E].
    """

    name: str
    hidden_states: Tensor
    router_logits: Tensor
    experts: cm.Experts
    gating: cm.Gating

    @property
    def num_ranks(self) -> int:
        return self.hidden_states.shape[0]

    @property
    def placement(self) -> Placement:
        return Placement.even(self.experts.num_experts, self.num_ranks)

    def own_experts(self, rank: int) -> cm.Experts:
        """The rank's, as a layer would keep them."""
        own = list(self.placement.experts_of_rank[rank])
        weights = self.experts.gate_up_proj[own], self.experts.down_proj[own]
        return cm.Experts(*weights, activation=self.experts.activation).pack()


class Setting(NamedTuple):
    """A line of the table; ``factor`` None is dropless, or MoEShard."""

    method: str
    factor: float | None = None

    @property
    def name(self) -> str:
        return self.method if self.factor is None else f"{self.method} {self.factor:g}"

    def capacity(self) -> cm.Capacity | None:
        """Where experts are local, each rank's own take the place of this range."""
        if self.factor is None:
            return None
        if self.method == "Expanded Drop":
            return cm.Capacity(factor=self.factor, expand="local", local_experts=(0, 0))
        return cm.Capacity(factor=self.factor)


# Only kept rows travel, for an exchange of counts first.
COUNTED = "Token Drop, counted"
DROPLESS, SHARDED = Setting("dropless"), Setting("MoEShard")
SETTINGS = [
    DROPLESS,
    *(Setting("Token Drop", factor) for factor in FACTORS),
    *(Setting(COUNTED, factor) for factor in FACTORS),
    *(Setting("Expanded Drop", factor) for factor in FACTORS),
    SHARDED,
]


def make_experts(
    num_experts: int, hidden: int, intermediate: int, random: torch.Generator
) -> cm.Experts:
    up = torch.randn(num_experts, 2 * intermediate, hidden, generator=random) * hidden**-0.5
    down = torch.randn(num_experts, hidden, intermediate, generator=random) * intermediate**-0.5
    return cm.Experts(up.bfloat16(), down.bfloat16())


def shipped(ranks: int, tokens: int, layer: int = 0) -> Case:
    """A layer of the model that ships, with its own tokens on held-out text."""
    from capmoe_kernels.demo.corpus import held_out_files
    from capmoe_kernels.evaluate.checkpoint import load
    from capmoe_kernels.evaluate.text import make_batches, read_texts, tokenize
    from capmoe_kernels.integrations.transformers import find_moe_blocks

    with as_file(files("capmoe_kernels.demo") / "model") as folder:
        checkpoint = load(folder, "cpu")
    texts = read_texts(held_out_files(), max_bytes=2 * ranks * tokens)
    batches = make_batches(tokenize(texts, checkpoint.tokenizer), 512, 4096)
    block, seen = find_moe_blocks(checkpoint.model)[layer], []
    hook = block.module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        for batch in batches:
            checkpoint.model(batch.input_ids, use_cache=False)
            seen[-1] = seen[-1][batch.token_mask]
            if sum(map(len, seen)) >= ranks * tokens:
                break
        hook.remove()
        hidden = torch.cat(seen)[: ranks * tokens]
        logits = block.parts.router_logits(hidden)
    own = block.parts.experts
    # Parameters and inference tensors stay behind: these are plain copies.
    experts = cm.Experts(own.gate_up_proj.detach().clone(), own.down_proj.detach().clone())
    return Case(
        f"shipped model, layer {layer + 1} (E {own.num_experts}, k {block.parts.gating.top_k},"
        f" H {own.hidden_size}, F {own.intermediate_size})",
        hidden.clone().view(ranks, tokens, -1),
        logits.float().clone().view(ranks, tokens, -1),
        experts,
        block.parts.gating,
    )


def widened(case: Case, hidden: int, intermediate: int) -> Case:
    """The same routing, on larger random experts and tokens: rows then dominate the step."""
    random = torch.Generator().manual_seed(0)
    num_experts = case.experts.num_experts
    tokens = torch.randn(*case.hidden_states.shape[:2], hidden, generator=random).bfloat16()
    return Case(
        f"the same routing, larger experts (H {hidden}, F {intermediate})",
        tokens,
        case.router_logits,
        make_experts(num_experts, hidden, intermediate, random),
        case.gating,
    )


def log_normal(ranks: int, tokens: int, skew: float, sizes: tuple[int, int, int, int]) -> Case:
    """One group of experts per rank, whose popularity is log-normal, as is that within a group.

    Popularities are the quantiles of the log-normal, not draws: with two groups, luck would decide.
    """
    num_experts, top_k, hidden, intermediate = sizes
    random = torch.Generator().manual_seed(0)
    share = num_experts // ranks
    within = normal_quantiles(share)[torch.randperm(share, generator=random)]
    popularity = skew * (normal_quantiles(ranks).flip(0)[:, None] + within).flatten()
    # Logits with Gumbel noise: a token's top-k is a draw by popularity, without replacement.
    clocks = torch.empty(ranks, tokens, num_experts).exponential_(generator=random)
    return Case(
        f"log-normal skew {skew:g}, one expert group per rank"
        f" (E {num_experts}, k {top_k}, H {hidden}, F {intermediate})",
        torch.randn(ranks, tokens, hidden, generator=random).bfloat16(),
        popularity - clocks.log(),
        make_experts(num_experts, hidden, intermediate, random),
        cm.Gating(top_k=top_k, renormalize="topk"),
    )


def normal_quantiles(count: int) -> Tensor:
    """The middles of ``count`` equal shares of a standard normal, ascending."""
    return torch.special.ndtri((torch.arange(count) + 0.5) / count)


def save_case(case: Case, path: str) -> None:
    """For the ranks, which then need no Transformers."""
    weights = case.experts.gate_up_proj, case.experts.down_proj
    top_k, renormalize = case.gating.top_k, case.gating.renormalize
    torch.save(
        [case.name, case.hidden_states, case.router_logits, *weights, top_k, renormalize], path
    )


def load_case(path: str) -> Case:
    name, hidden_states, router_logits, up, down, top_k, renormalize = torch.load(path)
    gating = cm.Gating(top_k=top_k, renormalize=renormalize)
    return Case(name, hidden_states, router_logits, cm.Experts(up, down), gating)


def make_cases(real: Case, small: bool) -> list[Case]:
    """``small``: sizes that only show that everything runs."""
    ranks, tokens = real.hidden_states.shape[:2]
    if small:
        return [real, widened(real, 64, 64), log_normal(ranks, tokens, 1.0, (8, 2, 64, 64))]
    return [
        real,
        widened(real, 512, 1024),
        log_normal(ranks, tokens, 1.0, (16, 2, 512, 2048)),
        log_normal(ranks, tokens, 1.5, (16, 2, 512, 2048)),
    ]
