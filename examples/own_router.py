"""A router of your own: bring ids and weights, the library does capacity, rows and experts.

    python examples/own_router.py

The router here is a hash layer (arXiv 2106.04426): a token's word decides its experts, and nothing
is learned. Frequent words make busy experts. A token keeps its place by how rare its word is, a
score that no gate would have given.
"""

from __future__ import annotations

import torch

import capmoe_kernels as cm

EXPERTS, TOP_K, HIDDEN, INNER, WORDS = 8, 2, 32, 64, 50


def hash_router(words: torch.Tensor) -> torch.Tensor:
    """[T, 2] ids of two different experts."""
    first = words * 7919 % EXPERTS
    return torch.stack([first, (first + 1 + words % (EXPERTS - 1)) % EXPERTS], dim=1)


def main() -> None:
    torch.manual_seed(0)
    words = torch.multinomial(1 / torch.arange(1.0, WORDS + 1), 200, replacement=True)  # as in text
    hidden_states = torch.randn(len(words), HIDDEN)
    experts = cm.Experts(
        torch.randn(EXPERTS, 2 * INNER, HIDDEN) * HIDDEN**-0.5,
        torch.randn(EXPERTS, HIDDEN, INNER) * INNER**-0.5,
    )

    ids = hash_router(words)
    weights = torch.full(ids.shape, 1 / TOP_K)
    ids[words == 0] = -1  # "not routed": the commonest word needs no expert
    rareness = 1 / torch.bincount(words, minlength=WORDS)[words].float()
    scores = rareness[:, None].expand(-1, TOP_K)

    common, rare = words < 5, words >= 25
    for capacity in (None, cm.Capacity(factor=1.0)):
        routing = cm.select(ids, weights, EXPERTS, capacity, scores=scores)
        x = cm.dispatch(hidden_states, routing)
        out = cm.combine(cm.grouped_mlp(x, experts, routing), routing)
        kept = (routing.rows >= 0).sum(dim=1).float()
        print("dropless" if capacity is None else f"factor {capacity.factor}")
        print("  tokens by expert", routing.tokens_per_expert.tolist())
        print(f"  experts of a token: {kept[rare].mean():.2f} of rare words,", end=" ")
        print(f"{kept[common].mean():.2f} of common ones")
        assert (out[kept == 0] == 0).all()  # exactly, for whoever has no expert


if __name__ == "__main__":
    main()
