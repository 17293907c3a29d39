"""Attention and experts with backward passes of their own, for one processor core.

Attention skips blocks that the causal mask removes whole; tokens are sorted by expert so that each
expert is one dense product.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128

# oneDNN builds a kernel for every new shape, which costs more than the product itself; rows rounded
# up to a multiple of this give few enough shapes for its cache.
ROW_BLOCK = 64


@torch.compile(dynamic=False)
def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return (scores.float() + mask).softmax(-1).to(scores.dtype)


@torch.compile(dynamic=False)
def _softmax_backward(p: Tensor, dp: Tensor, row: Tensor) -> Tensor:
    return (p.float() * (dp.float() - row)).to(p.dtype)


class CausalAttention(torch.autograd.Function):
    """Exact causal attention in query blocks, each against the keys up to its own end."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Inputs and output are ``[batch * heads, length, head_dim]``."""
        length = q.shape[1]
        out = torch.empty_like(q)
        kept: list[Tensor] = []
        for start in range(0, length, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, length)
            mask = torch.full((end - start, end), -1e30).triu_(start + 1)
            p = _masked_softmax(torch.bmm(q[:, start:end], k[:, :end].mT), mask)
            out[:, start:end] = torch.bmm(p, v[:, :end])
            kept.append(p)
        ctx.save_for_backward(q, k, v, out, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the three inputs."""
        q, k, v, out, *kept = ctx.saved_tensors
        length = q.shape[1]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        rows = (grad.float() * out.float()).sum(-1, keepdim=True)
        for index, start in enumerate(range(0, length, QUERY_BLOCK)):
            end = min(start + QUERY_BLOCK, length)
            p, g = kept[index], grad[:, start:end]
            dv[:, :end] += torch.bmm(p.mT, g)
            ds = _softmax_backward(p, torch.bmm(g, v[:, :end].mT), rows[:, start:end])
            dq[:, start:end] = torch.bmm(ds, k[:, :end])
            dk[:, :end] += torch.bmm(ds.mT, q[:, start:end])
        return dq, dk, dv


@torch.compile(dynamic=False)
def _gate(gu: Tensor) -> Tensor:
    width = gu.shape[1] // 2
    gate, up = gu[:, :width].float(), gu[:, width:].float()
    return (F.silu(gate) * up).to(gu.dtype)


@torch.compile(dynamic=False)
def _gate_backward(gu: Tensor, da: Tensor) -> Tensor:
    width = gu.shape[1] // 2
    gate, up, d = gu[:, :width].float(), gu[:, width:].float(), da.float()
    sig = torch.sigmoid(gate)
    dgate = d * up * sig * (1 + gate * (1 - sig))
    return torch.cat([dgate, d * gate * sig], dim=1).to(gu.dtype)


@torch.compile(dynamic=False)
def _combine(y: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    return (y[slots].float() * weights[..., None]).sum(1).to(y.dtype)


@torch.compile(dynamic=False)
def _sum_slots(y: Tensor, slots: Tensor) -> Tensor:
    return y[slots].float().sum(1).to(y.dtype)


@torch.compile(dynamic=False)
def _combine_backward(
    grad: Tensor, y: Tensor, tokens: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    g = grad[tokens].float()
    return (g * weights[:, None]).to(y.dtype), (g * y.float()).sum(-1)


class SortedExperts(torch.autograd.Function):
    """The experts of one layer: sort the tokens by expert, then one product per expert."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, index: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        """``x`` is ``[tokens, hidden]``; ``weights`` and ``index`` are ``[tokens, top_k]``."""
        experts, top_k = len(gate_up), index.shape[1]
        flat = index.reshape(-1)
        order = torch.sort(flat.to(torch.int16), stable=True).indices
        counts = torch.bincount(flat, minlength=experts)
        padded = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
        ends = padded.cumsum(0)
        shift = (ends - padded) - (counts.cumsum(0) - counts)
        rows = torch.arange(len(order)) + shift[flat[order]]
        slots = torch.empty_like(order)
        slots[order] = rows
        # A padding row reads token 0 with weight 0, so it adds nothing to any gradient.
        tokens = torch.zeros(len(order) + experts * ROW_BLOCK, dtype=torch.int64)
        tokens[rows] = order // top_k
        sorted_weights = torch.zeros(len(tokens))
        sorted_weights[rows] = weights.reshape(-1)[order]
        slots = slots.view(-1, top_k)
        xs = x.index_select(0, tokens)
        gu = xs.new_empty(len(xs), gate_up.shape[1])
        y = torch.empty_like(xs)
        stops = ends.tolist()
        spans = [(e, a, b) for e, (a, b) in enumerate(pairwise([0, *stops])) if b > a]
        for e, a, b in spans:
            torch.mm(xs[a:b], gate_up[e].t(), out=gu[a:b])
        act = _gate(gu)
        for e, a, b in spans:
            torch.mm(act[a:b], down[e].t(), out=y[a:b])
        ctx.save_for_backward(xs, gu, act, y, slots, tokens, sorted_weights, gate_up, down)
        ctx.spans = spans
        return _combine(y, slots, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor]:
        """Gradients of the tokens, the router's weights and both expert stacks."""
        xs, gu, act, y, slots, tokens, weights, gate_up, down = ctx.saved_tensors
        dy, dweight = _combine_backward(grad, y, tokens, weights)
        d_down, d_gate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        da = torch.empty_like(act)
        for e, a, b in ctx.spans:
            torch.mm(dy[a:b], down[e], out=da[a:b])
            torch.mm(dy[a:b].t(), act[a:b], out=d_down[e])
        dgu = _gate_backward(gu, da)
        dxs = torch.empty_like(xs)
        for e, a, b in ctx.spans:
            torch.mm(dgu[a:b], gate_up[e], out=dxs[a:b])
            torch.mm(dgu[a:b].t(), xs[a:b], out=d_gate_up[e])
        return _sum_slots(dxs, slots), dweight[slots], None, d_gate_up, d_down
