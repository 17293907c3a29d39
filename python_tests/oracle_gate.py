"""The truth about the gate: scores, groups, top-k and extra candidates, in plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
CLAMP = 1e-20


@dataclass
class Candidates:
    """What the gate says, scores and weights in float64."""

    expert_ids: list[list[int]]
    weights: list[list[float]]
    scores: list[list[float]]


def softmax(row):
    top = max(row)
    exps = [math.exp(x - top) if x > -math.inf else 0.0 for x in row]
    total = math.fsum(exps)
    return [x / total for x in exps]


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def clean(x):
    return -math.inf if math.isnan(x) else min(x, FLOAT32_MAX)


def best_groups(values, scores, usable, gating):
    """Experts of the token's best groups; a group of forbidden experts is the worst."""
    size = len(scores) // gating.num_groups
    worth = []
    for group in range(gating.num_groups):
        members = [e for e in range(group * size, (group + 1) * size) if e in usable]
        if not members:
            worth.append(-math.inf)
        elif gating.group_score == "max":
            worth.append(max(values[e] for e in members))
        else:
            worth.append(sum(sorted((scores[e] for e in members), reverse=True)[:2]))
    best = sorted(range(gating.num_groups), key=lambda g: (-worth[g], g))[: gating.topk_groups]
    return {e for e in usable if e // size in best}


def gate_token(row, gating, bias, expand, extra, local):
    """(top-k, extra candidates, score of every expert), candidates best first."""
    row = [clean(x) for x in row]
    usable = {e for e, x in enumerate(row) if x > -math.inf}
    if not usable:
        return [], [], [0.0] * len(row)
    p = softmax(row) if gating.scoring == "softmax" else [sigmoid(x) for x in row]
    biased = p if bias is None else [s + b for s, b in zip(p, bias, strict=True)]
    values = row if bias is None else biased
    usable = {e for e in usable if values[e] > -math.inf}
    usable = best_groups(values, biased, usable, gating)
    order = sorted(usable, key=lambda e: (-values[e], e))
    top, rest = order[: gating.top_k], order[gating.top_k :]
    more = [e for e in rest if e in local] if expand == "local" else rest[:extra]
    return top, more, p


def gate(logits, gating, bias=None, drop_score="prob", expand="none", extra=0, local=range(0)):
    """Every token's candidates. ``renormalize="kept"`` is select's business: raw scores here."""
    num_experts = len(logits[0]) if logits else 1
    columns = min(num_experts, gating.top_k + (len(local) if expand == "local" else extra))
    out = Candidates([], [], [])
    for row in logits:
        top, more, p = gate_token(row, gating, bias, expand, extra, local)
        total = max(math.fsum(p[e] for e in top), CLAMP)
        divide = total if gating.renormalize == "topk" else 1.0
        scale = 1.0 if gating.renormalize == "kept" else gating.scaling
        ranked = total if drop_score == "weight" and gating.renormalize != "none" else 1.0
        used = top + more
        pad = columns - len(used)
        out.expert_ids.append(used + [num_experts] * pad)
        out.weights.append([p[e] / divide * scale for e in used] + [0.0] * pad)
        out.scores.append([p[e] / ranked for e in used] + [0.0] * pad)
    return out
