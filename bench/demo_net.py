"""The forward pass of ``OlmoeForCausalLM``, written so that one processor core trains it fast.

Parameter names, shapes and mathematics are those of Transformers, so a state dict goes straight
into the real class.  What differs is the order of the work: tokens are sorted by expert so that
each expert is one dense product, attention skips blocks that the causal mask removes whole, and
the elementwise steps between the matrix products are fused by ``torch.compile``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from demo_autograd import CausalAttention, SortedExperts
from torch import Tensor

EPS = 1e-5
ROPE_THETA = 10000.0
# Two window lengths mean twice the block shapes, each compiled for itself.
torch._dynamo.config.recompile_limit = 64


@dataclass(frozen=True)
class Shape:
    """The sizes that define the model."""

    vocab: int = 257
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    experts: int = 64
    top_k: int = 4
    # A multiple of 8: grouped products of bf16 want rows of whole 16-byte blocks.
    width: int = 40


def init_params(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Fresh fp32 parameters under Transformers' names."""

    def normal(*sizes: int, std: float) -> Tensor:
        return torch.randn(*sizes, generator=generator) * std

    h, w, e = shape.hidden, shape.width, shape.experts
    params = {"model.embed_tokens.weight": normal(shape.vocab, h, std=0.3)}
    for i in range(shape.layers):
        pre = f"model.layers.{i}."
        for name in ("q", "k", "v"):
            params[f"{pre}self_attn.{name}_proj.weight"] = normal(h, h, std=h**-0.5)
        params[f"{pre}self_attn.o_proj.weight"] = normal(h, h, std=0.3 * h**-0.5)
        params[f"{pre}self_attn.q_norm.weight"] = torch.ones(h)
        params[f"{pre}self_attn.k_norm.weight"] = torch.ones(h)
        params[f"{pre}mlp.gate.weight"] = normal(e, h, std=h**-0.5)
        params[f"{pre}mlp.experts.gate_up_proj"] = normal(e, 2 * w, h, std=h**-0.5)
        # The router's weights start near 1/experts each, so the experts may start large.
        params[f"{pre}mlp.experts.down_proj"] = normal(e, h, w, std=2 * w**-0.5)
        params[f"{pre}input_layernorm.weight"] = torch.ones(h)
        params[f"{pre}post_attention_layernorm.weight"] = torch.ones(h)
    params["model.norm.weight"] = torch.ones(h)
    params["lm_head.weight"] = torch.zeros(shape.vocab, h)
    return {name: value.requires_grad_() for name, value in params.items()}


def rope_tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[length, 1, head_dim]`` of the rotary position embedding."""
    inverse = 1.0 / (ROPE_THETA ** (torch.arange(0, head_dim, 2).float() / head_dim))
    angles = torch.outer(torch.arange(length).float(), inverse)
    both = torch.cat([angles, angles], dim=-1)[:, None]
    return both.cos(), both.sin()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square normalisation in fp32, returned in the type of ``x``."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return (y * weight.float()).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to ``[batch, length, heads, head_dim]``."""
    half = x.shape[-1] // 2
    y = x.float()
    turned = torch.cat([-y[..., half:], y[..., :half]], dim=-1)
    return (y * cos + turned * sin).to(x.dtype)


@torch.compile(dynamic=False)
def project_qkv(
    x: Tensor, norm: Tensor, weights: list[Tensor], norms: list[Tensor], cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[batch * heads, length, head_dim]`` of one layer."""
    batch, length, hidden = x.shape
    head_dim = cos.shape[-1]
    y = rms_norm(x, norm)
    q, k, v = (F.linear(y, weight) for weight in weights)
    # The scale of the scores goes into the queries, which are smaller than the scores.
    q = rms_norm(q, norms[0] * head_dim**-0.5)
    k = rms_norm(k, norms[1])
    split = (batch, length, hidden // head_dim, head_dim)
    q, k = rotate(q.view(split), cos, sin), rotate(k.view(split), cos, sin)

    def fold(t: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(-1, length, head_dim)

    return fold(q), fold(k), fold(v.view(split))


@torch.compile(dynamic=False)
def after_attention(
    x: Tensor, o: Tensor, weight: Tensor, norm: Tensor, router: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The new residual, its normalised form, and the router's probabilities."""
    batch, length, hidden = x.shape
    merged = o.view(batch, -1, length, o.shape[-1]).transpose(1, 2).reshape(batch, length, hidden)
    x = x + F.linear(merged, weight)
    y = rms_norm(x, norm).view(-1, hidden)
    return x, y, F.linear(y, router).float().softmax(-1)


@torch.compile(dynamic=False)
def byte_losses(x: Tensor, norm: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (nats) of every position."""
    logits = F.linear(rms_norm(x, norm).view(-1, x.shape[-1]), head)
    return F.cross_entropy(logits.float(), targets.view(-1), reduction="none")


def floor_penalty(probs: Tensor, counts: Tensor, floor: float) -> Tensor:
    """Lift only the experts whose share of the tokens is under ``floor`` times the mean share.

    Nothing pulls the busy experts down, so the skew above the floor is the model's own choice.
    The logarithm makes the push on a nearly dead expert as strong as on any other.
    """
    share = counts * (len(counts) / counts.sum())
    lack = F.relu(floor - share) / floor
    return -(lack * (probs.mean(0) * len(counts)).log()).sum()


def forward(
    params: dict[str, Tensor], shape: Shape, ids: Tensor, targets: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of every byte (nats), the floor penalty, and the expert loads ``[layers, experts]``."""
    cos, sin = rope_tables(ids.shape[1], shape.hidden // shape.heads)
    x = F.embedding(ids, params["model.embed_tokens.weight"]).to(torch.bfloat16)
    penalty = torch.zeros(())
    loads: list[Tensor] = []
    for i in range(shape.layers):
        p = {k.split(f"layers.{i}.")[1]: v for k, v in params.items() if f"layers.{i}." in k}
        low = {name: value.to(torch.bfloat16) for name, value in p.items() if value.dim() > 1}
        q, k, v = project_qkv(
            x,
            p["input_layernorm.weight"],
            [low[f"self_attn.{name}_proj.weight"] for name in "qkv"],
            [p["self_attn.q_norm.weight"], p["self_attn.k_norm.weight"]],
            cos,
            sin,
        )
        o = CausalAttention.apply(q, k, v)
        x, y, probs = after_attention(
            x,
            o,
            low["self_attn.o_proj.weight"],
            p["post_attention_layernorm.weight"],
            low["mlp.gate.weight"],
        )
        top, index = probs.topk(shape.top_k, dim=-1, sorted=False)
        counts = torch.bincount(index.reshape(-1), minlength=shape.experts).float()
        loads.append(counts)
        if floor > 0:
            penalty = penalty + floor_penalty(probs, counts, floor)
        moe = SortedExperts.apply(
            y, top, index, low["mlp.experts.gate_up_proj"], low["mlp.experts.down_proj"]
        )
        x = x + moe.view_as(x)
    head = params["lm_head.weight"].to(torch.bfloat16)
    losses = byte_losses(x, params["model.norm.weight"], head, targets)
    return losses, penalty, torch.stack(loads)


def parameter_count(params: dict[str, Tensor]) -> int:
    """Number of trained numbers."""
    return sum(math.prod(value.shape) for value in params.values())
