"""What a block of a known architecture must compute, from the oracles, its own weights and a hand-
written gate; nothing is read through the package.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

import oracle
import oracle_mlp
from architectures import EXPERTS, HIDDEN
from capmoe_kernels import Capacity, Experts


def tokens_of(dtype, num_tokens=48, seed=0):
    """[2, T / 2, H], large enough for GPT-OSS's clamp to bite."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(2, num_tokens // 2, HIDDEN, generator=generator)).to(dtype)


def first(out):
    """A block's hidden states, whether it returns a tuple or not."""
    return out[0] if isinstance(out, tuple) else out


def logits_of(case, block, tokens):
    router = block.router if hasattr(block, "router") else block.gate
    if case.float32_router:
        return F.linear(tokens.float(), router.weight.float())
    return F.linear(tokens, router.weight, getattr(router, "bias", None))


def experts_of(case, block):
    """Copies of the weights, as [E, 2F, H] and [E, H, F]."""
    held = block.experts
    if isinstance(held, torch.nn.ModuleList):
        gate, up, down = ("w1", "w3", "w2") if hasattr(held[0], "w1") else _PROJECTIONS
        weights = [
            torch.stack([torch.cat([getattr(e, n).weight for n in names]) for e in held])
            for names in ((gate, up), (down,))
        ]
        return Experts(*weights, activation=case.activation)
    if case.layout == "interleaved":
        weights = [held.gate_up_proj.mT, held.down_proj.mT]
        biases = [held.gate_up_proj_bias.clone(), held.down_proj_bias.clone()]
        return Experts(*(w.clone() for w in weights), *biases, case.activation, case.layout)
    weights = [held.gate_up_proj.clone(), held.down_proj.clone()]
    return Experts(*weights, activation=case.activation)


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def decide(case, block, tokens, capacity):
    """The oracle's decision about tokens [T, H]."""
    bias = block.gate.e_score_correction_bias.float().tolist() if case.biased else None
    candidates = oracle.gate(
        logits_of(case, block, tokens).float().tolist(),
        case.gating,
        bias,
        capacity.drop_score,
        capacity.expand,
        capacity.extra,
        range(*(capacity.local_experts or (0, 0))),
    )
    return oracle.select(
        candidates.expert_ids,
        candidates.weights,
        candidates.scores,
        EXPERTS,
        capacity,
        top_k=case.gating.top_k,
    )


def truth_and_same_dtype(case, block, tokens, capacity=None):
    """What the block must give for tokens [T, H] in float64, and in the tokens' dtype by loops."""
    decision = decide(case, block, tokens, capacity or Capacity())
    experts = experts_of(case, block)
    truth = torch.zeros(tokens.shape, dtype=torch.float64)
    same = torch.zeros_like(tokens)
    for t, line in enumerate(decision.expert_ids):
        for column, e in enumerate(line):
            if decision.rows[t][column] < 0:
                continue
            weight = decision.weights[t][column]
            truth[t] += weight * oracle_mlp.expert_mlp(tokens[t], experts, e)
            same[t] += oracle_mlp.same_dtype_mlp(tokens[t : t + 1], experts, e)[0] * weight
    if case.shared is not None:
        truth += _shared(case, copy.deepcopy(block).double(), tokens.double())
        same += _shared(case, block, tokens)
    return truth, same


def _shared(case, block, tokens):
    out = getattr(block, case.shared)(tokens)
    if case.shared == "shared_expert":
        out = torch.sigmoid(block.shared_expert_gate(tokens)) * out
    return out


def without_ties(case, block, tokens):
    """[T] bool: tokens whose choice of experts no rounding decides."""
    logits = logits_of(case, block, tokens).double()
    values = logits.sigmoid() if case.biased else logits
    if case.biased:
        values = values + block.gate.e_score_correction_bias.double()
    keep = _apart(values, case.gating.top_k)
    groups = case.gating.num_groups
    if groups > 1:
        grouped = values.view(-1, groups, EXPERTS // groups)
        top2 = case.gating.group_score == "top2_sum"
        worth = grouped.topk(2).values.sum(2) if top2 else grouped.amax(2)
        best = worth.topk(case.gating.topk_groups).indices
        usable = torch.zeros_like(worth).scatter(1, best, 1).repeat_interleave(2, 1).bool()
        inside = values.masked_fill(~usable, -torch.inf)
        keep = _apart(worth, case.gating.topk_groups) & _apart(inside, case.gating.top_k)
    return keep


def _apart(values, k):
    """Whether the k-th largest of each row is clear of the next."""
    ordered = values.sort(descending=True).values
    return ordered[:, k - 1] - ordered[:, k] > 1e-6
