"""The truth the tests compare with: section 1.13 of the specification, transcribed in plain Python.

Nothing here is shared with the package: decisions are loops, ``sorted`` and fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

from oracle_gate import CLAMP, gate

__all__ = ["Decision", "gate", "pair_hash", "select", "share"]


@dataclass
class Decision:
    """What a Routing holds, as lists."""

    expert_ids: list[list[int]]
    weights: list[list[float]]
    rows: list[list[int]]
    row_tokens: list[int]
    expert_offsets: list[int]
    tokens_per_expert: list[int]
    demand_per_expert: list[int]
    kept: set[tuple[int, int]] = field(default_factory=set)
    capacity: int = 0


def share(tokens, num_experts, top_k, factor, rounding="ceil"):
    """C before the cap at T, from the factor's decimal digits; None where it is infinite."""
    if factor is None or factor == math.inf:
        return None
    exact = Fraction(str(factor)) * top_k * tokens / num_experts
    return math.ceil(exact) if rounding == "ceil" else math.floor(exact)


def lowbias32(x):
    x &= 0xFFFFFFFF
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def pair_hash(seed, token, expert):
    start = lowbias32(lowbias32(seed & 0xFFFFFFFF) ^ seed >> 32)
    return lowbias32(lowbias32(start + token) + expert)


def policy_value(policy, seed, score, token, expert):
    """Higher is kept first."""
    if policy == "random":
        return pair_hash(seed, token, expert)
    return {"score": score, "keep_first": -token, "keep_last": token}[policy]


def listed_once(ids, num_experts, token_mask):
    """Ids in [0, E), each once per token; E for the rest and for padding tokens."""
    out = []
    for t, row in enumerate(ids):
        seen = set()
        line = []
        for e in row:
            real = 0 <= e < num_experts and e not in seen and (token_mask is None or token_mask[t])
            line.append(e if real else num_experts)
            seen.add(e)
        out.append(line)
    return out


def admit(asking, per_budget, capacity, key):
    """The pairs that fit: ``per_budget`` experts share ``per_budget * capacity`` places."""
    kept = set()
    for budget in {e // per_budget for _, e in asking}:
        own = sorted((pair for pair in asking if pair[1] // per_budget == budget), key=key)
        kept |= set(own[: per_budget * capacity])
    return kept


def reroute(listed, num_experts, top_k, rounds, fits):
    """Per round, tokens short of ``top_k`` experts ask their next best; a refusal is final.

    -> (pairs kept, pairs that asked at all)
    """
    held, refused = set(), set()
    for _ in range(rounds):
        asking = set(held)
        for t, line in enumerate(listed):
            missing = top_k - sum(pair[0] == t for pair in held)
            fresh = [e for e in line if e < num_experts and (t, e) not in held | refused]
            asking |= {(t, e) for e in fresh[:missing]}
        held = fits(asking)
        lost = asking - held
        refused |= lost
        if not lost:
            break
    return held, held | refused


def round_up(rows, alignment):
    return -(-rows // alignment) * alignment


def rows_allocated(tokens, num_experts, per_token, capacity, per_budget, layout, alignment):
    """N: each expert that has any row may waste up to ``alignment - 1``; C rows each suffice too.

    Experts that share a budget of places may all hold ragged ends, whatever C is.
    """
    if layout == "padded":
        return num_experts * round_up(capacity, alignment)
    pairs = tokens * per_token
    spread = round_up(pairs + min(num_experts, pairs) * (alignment - 1), alignment)
    full = capacity + alignment - 1 if per_budget > 1 else round_up(capacity, alignment)
    return min(spread, round_up(num_experts * full, alignment))


def lay_out(listed, kept, num_experts, allocated, stride, alignment):
    """(rows, row_tokens, offsets, counts): rows of an expert in token order."""
    counts = [sum(pair[1] == e for pair in kept) for e in range(num_experts)]
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + (round_up(count, alignment) if stride is None else stride))
    row_of, row_tokens = {}, [-1] * allocated
    taken = list(offsets)
    for t, e in sorted(kept):
        row_of[t, e] = taken[e]
        row_tokens[taken[e]] = t
        taken[e] += 1
    rows = [[row_of.get((t, e), -1) for e in line] for t, line in enumerate(listed)]
    return rows, row_tokens, offsets, counts


def select(
    ids,
    weights,
    scores,
    num_experts,
    capacity,
    *,
    top_k=None,
    token_mask=None,
    token_priority=None,
    kept_weight_sum=None,
    layout="packed",
    row_alignment=1,
):
    """Who stays and in which row. ``capacity`` is read as a record of options, nothing else."""
    tokens = len(ids)
    columns = len(ids[0]) if ids else 0
    top_k = columns if top_k is None else top_k
    listed = listed_once(ids, num_experts, token_mask)
    real = tokens if token_mask is None else sum(token_mask)

    def bound(count):
        limit = capacity.limit
        if limit is None:
            limit = share(count, num_experts, top_k, capacity.factor, capacity.rounding)
        return count if limit is None else min(limit, count)

    score = {
        (t, e): scores[t][j]
        for t in range(tokens)
        for j, e in enumerate(listed[t])
        if e < num_experts
    }
    member = {(t, e) for t in range(tokens) for e in listed[t][:top_k] if e < num_experts}

    def key(pair):
        t, e = pair
        klass = 0 if token_priority is None else token_priority[t]
        first = capacity.expand_priority == "topk_first" and pair in member
        value = policy_value(capacity.policy, capacity.seed, score[pair], t, e)
        return (-klass, not first, -value, t, e)

    per_budget = capacity.experts_per_device or 1

    def fits(asking):
        return admit(asking, per_budget, bound(real), key)

    if capacity.reroute_rounds > 1:
        kept, asked = reroute(listed, num_experts, top_k, capacity.reroute_rounds, fits)
        listed = [
            [e if (t, e) in asked else num_experts for e in line] for t, line in enumerate(listed)
        ]
    else:
        kept = fits(set(score))
    most = capacity.max_experts_per_token
    if most is not None:
        for t in range(tokens):
            own = sorted((p for p in kept if p[0] == t), key=lambda p: (-score[p], p[1]))
            kept -= set(own[most:])

    per_token = top_k if capacity.reroute_rounds > 1 else columns
    per_token = min(per_token, most or per_token)
    host = bound(tokens)
    allocated = rows_allocated(
        tokens, num_experts, per_token, host, per_budget, layout, row_alignment
    )
    stride = round_up(host, row_alignment) if layout == "padded" else None
    rows, row_tokens, offsets, counts = lay_out(
        listed, kept, num_experts, allocated, stride, row_alignment
    )
    demand = [sum(pair[1] == e for pair in member) for e in range(num_experts)]
    final = [
        [w if r >= 0 else 0.0 for w, r in zip(*line, strict=True)]
        for line in zip(weights, rows, strict=True)
    ]
    if kept_weight_sum is not None:
        final = [
            [w / max(math.fsum(line), CLAMP) * kept_weight_sum for w in line] for line in final
        ]
    return Decision(listed, final, rows, row_tokens, offsets, counts, demand, kept, bound(real))
