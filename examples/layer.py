"""One Mixture-of-Experts layer, whole and step by step, with and without a capacity.

    python examples/layer.py

Shows what a capacity does to the experts' loads, that the four steps give what ``cm.moe`` gives,
and how far the bounded output is from the dropless one. The router prefers the first experts.
"""

from __future__ import annotations

import torch

import capmoe_kernels as cm

TOKENS, EXPERTS, TOP_K, HIDDEN, INNER = 512, 16, 2, 64, 128


def main() -> None:
    torch.manual_seed(0)
    hidden_states = torch.randn(TOKENS, HIDDEN)
    router_logits = torch.randn(TOKENS, EXPERTS) + torch.linspace(1.5, -1.5, EXPERTS)
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN) * HIDDEN**-0.5
    down = torch.randn(EXPERTS, HIDDEN, INNER) * INNER**-0.5
    experts = cm.Experts(gate_up, down).pack()  # once: the layout that the kernels read fastest
    gating = cm.Gating(top_k=TOP_K, renormalize="topk")

    dropless = cm.moe(hidden_states, router_logits, experts, gating)
    print(
        f"{TOKENS} tokens, {EXPERTS} experts, top {TOP_K}; served by {cm.backends().serving['cpu']}"
    )
    for factor in (2.0, 1.0, 0.5):
        capacity = cm.Capacity(factor=factor)

        routing = cm.route(router_logits, gating, capacity)  # who goes where, who is dropped
        x = cm.dispatch(hidden_states, routing)  # rows grouped by expert
        y = cm.grouped_mlp(x, experts, routing)  # each expert on its rows
        out = cm.combine(y, routing)  # back to tokens

        whole = cm.moe(hidden_states, router_logits, experts, gating, capacity)
        torch.testing.assert_close(out, whole)
        most = cm.expert_capacity(TOKENS, EXPERTS, TOP_K, factor)
        error = (out - dropless).norm() / dropless.norm()
        print(f"\nfactor {factor}: no expert keeps more than {most} tokens")
        print("  asked for", routing.demand_per_expert.tolist())
        print("  kept     ", routing.tokens_per_expert.tolist())
        print(f"  the output is {error:.0%} off the dropless one")


if __name__ == "__main__":
    main()
