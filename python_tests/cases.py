"""Inputs named by what they provoke, shared by every test."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch

import capmoe_kernels as cm

FACTOR_ONE = cm.Capacity(factor=1.0)
DROPLESS = cm.Capacity()


@dataclass(frozen=True)
class Case:
    """One layer: T tokens, E experts, top-k, H and F, how logits look and how load is bounded."""

    name: str
    T: int
    E: int
    k: int
    H: int
    F: int
    style: str = "gaussian"
    capacity: cm.Capacity = FACTOR_ONE

    def __repr__(self):
        return self.name

    def logits(self, seed=0):
        return router_logits(self.T, self.E, self.style, seed)

    def hidden(self, dtype=torch.float32, seed=1):
        return normal((self.T, self.H), dtype, seed)

    def experts(self, dtype=torch.float32, seed=2, **options):
        return make_experts(self.E, self.H, self.F, dtype, seed, **options)

    @property
    def gating(self):
        return cm.Gating(top_k=self.k)


CASES = [
    Case("empty", 0, 8, 2, 16, 8),
    Case("one_token", 1, 8, 2, 16, 8),
    Case("two_tokens", 2, 4, 2, 16, 8),
    Case("all_to_one_expert", 33, 8, 1, 24, 16, "one_expert", DROPLESS),
    Case("capacity_one", 40, 8, 2, 16, 8, "gaussian", cm.Capacity(limit=1)),
    Case("capacity_zero", 17, 8, 2, 16, 8, "gaussian", cm.Capacity(factor=0.0)),
    Case("no_drop", 64, 8, 2, 32, 16, "gaussian", DROPLESS),
    Case("above_all_tokens", 12, 4, 2, 16, 8, "gaussian", cm.Capacity(factor=4.5)),
    Case("ragged", 257, 8, 3, 100, 37, "skewed"),
    Case("ties", 64, 8, 3, 16, 8, "levels"),
    Case("e60", 130, 60, 4, 20, 12, "skewed", cm.Capacity(factor=1.5)),
    Case("k_equals_e", 21, 5, 5, 16, 8),
    Case("single_expert", 9, 1, 1, 7, 5, "gaussian", cm.Capacity(factor=0.5)),
    Case("decode", 4, 64, 8, 64, 32, "gaussian", DROPLESS),
    Case("prefill_small", 192, 16, 4, 64, 48, "skewed", cm.Capacity(factor=1.25)),
    Case("rows_of_one", 31, 16, 2, 1, 1, "skewed"),
]

every_case = pytest.mark.parametrize("case", CASES, ids=repr)


def named(*names):
    """Only these cases."""
    chosen = [case for case in CASES if case.name in names]
    assert len(chosen) == len(names), names
    return pytest.mark.parametrize("case", chosen, ids=repr)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(shape, generator=generator(seed)) * scale).to(dtype)


def router_logits(tokens, num_experts, style="gaussian", seed=0):
    """[T, E] float32 logits.

    gaussian: rounded to bfloat16, as a bf16 router gives them; skewed: popular experts; levels:
    three values, so nearly everything ties; one_expert: everybody wants expert E // 2; distinct:
    within a token no two logits closer than 1/16, all multiples of 1/16: rounding decides nothing.
    """
    g = generator(seed)
    noise = torch.randn(tokens, num_experts, generator=g)
    if style == "gaussian":
        return noise.bfloat16().float()
    if style == "skewed":
        popularity = torch.linspace(2, -2, num_experts)[torch.randperm(num_experts, generator=g)]
        return (noise + popularity).bfloat16().float()
    if style == "levels":
        return noise.clamp(-1, 1).round()
    if style == "one_expert":
        noise[:, num_experts // 2] += 20
        return noise
    assert style == "distinct", style
    order = torch.rand(tokens, num_experts, generator=g).argsort(dim=1)
    return order / 16 + torch.randint(0, 8, (tokens, 1), generator=g)


def make_experts(
    num_experts,
    hidden,
    intermediate,
    dtype=torch.float32,
    seed=2,
    activation="silu",
    layout="concat",
    bias=False,
):
    """Experts with outputs of order one; two rows per neuron where the activation is gated."""
    rows = intermediate * (1 if activation.endswith("_no_mul") else 2)
    up = normal((num_experts, rows, hidden), dtype, seed, scale=hidden**-0.5)
    down = normal((num_experts, hidden, intermediate), dtype, seed + 1, scale=intermediate**-0.5)
    up_bias = normal((num_experts, rows), dtype, seed + 2) if bias else None
    down_bias = normal((num_experts, hidden), dtype, seed + 3) if bias else None
    return cm.Experts(up, down, up_bias, down_bias, activation=activation, layout=layout)


def topk_of(scores, top_k):
    """(ids int64, values) of a caller's own top-k, ties to the lower expert."""
    order = torch.argsort(-scores, dim=1, stable=True)[:, :top_k]
    return order, scores.gather(1, order)


def brief(settings):
    """A test id: the fields of a Gating or Capacity that are not at their default."""
    if not isinstance(settings, (cm.Gating, cm.Capacity)):
        return str(settings)
    shown = [f for f in fields(settings) if f.init and getattr(settings, f.name) != f.default]
    return ",".join(f"{f.name}={getattr(settings, f.name)}" for f in shown) or "default"
