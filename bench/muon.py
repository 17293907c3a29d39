"""Muon: momentum whose every matrix update is orthogonalised, batched over experts.

Plain AdamW needs several times as many steps to train a small language model this far, and steps
are what a processor core has few of.  See Keller Jordan's "Muon: an optimizer for hidden layers".
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push every singular value of ``[..., rows, columns]`` towards 1 (Newton-Schulz, bf16)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16)
    transposed = x.size(-2) > x.size(-1)
    if transposed:
        x = x.mT
    x = (x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)).contiguous()
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if transposed else x


class Muon:
    """One stack of equally shaped matrices: ``views`` are views ``[n, rows, columns]``."""

    def __init__(self, params: list[Tensor], rows: int, momentum: float, decay: float) -> None:
        self.params = params
        self.rows = rows
        self.momentum = momentum
        self.decay = decay
        self.buffers = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Apply one update from the gradients that the parameters hold."""
        updates: list[Tensor] = []
        for param, buffer in zip(self.params, self.buffers, strict=True):
            grad = param.grad
            assert grad is not None
            buffer.lerp_(grad, 1 - self.momentum)
            updates.append(torch.lerp(grad, buffer, self.momentum))
        columns = self.params[0].shape[-1]
        stack = torch.cat([update.reshape(-1, self.rows, columns) for update in updates])
        # A tall matrix needs a larger step for its output to change as much as a square one's.
        scale = max(1.0, self.rows / columns) ** 0.5
        ortho = orthogonalise(stack).float()
        for param, piece in zip(self.params, ortho.split(len(ortho) // len(updates)), strict=True):
            param.mul_(1 - lr * self.decay)
            param.sub_(piece.reshape(param.shape), alpha=lr * scale)
