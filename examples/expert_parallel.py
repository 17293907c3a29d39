"""Expert parallelism in one file: experts spread over the processes, capacity on each.

    torchrun --nproc-per-node 2 examples/expert_parallel.py

Runs on CPUs with gloo, or on GPUs, one for each process, with NCCL. Every process has tokens of its
own; an expert gets at most C rows from each, so the rows a process receives are bounded, whatever
the router does. The result is compared with what one process alone makes of the same tokens.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

import capmoe_kernels as cm
from capmoe_kernels.distributed import ExpertParallel

E, H, F, TOKENS = 16, 64, 32, 96
GATING = cm.Gating(top_k=2, renormalize="topk")


def main() -> None:
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() > 1
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)

    # All weights are made here only to compare: a process needs no more than its own.
    weights = torch.Generator().manual_seed(0)
    gate_up = torch.randn(E, 2 * F, H, generator=weights).to(device) * H**-0.5
    down = torch.randn(E, H, F, generator=weights).to(device) * F**-0.5
    popular = torch.linspace(1, -1, E)

    own = torch.Generator().manual_seed(1 + rank)
    tokens = TOKENS - 8 * rank  # any number on any rank
    hidden = torch.randn(tokens, H, generator=own).to(device)
    logits = (torch.randn(tokens, E, generator=own) + popular).to(device)

    for name, capacity in [("dropless", None), ("factor 1.0", cm.Capacity(factor=1.0))]:
        ep = ExpertParallel(
            None,
            E,
            gating=GATING,
            capacity=capacity,
            hidden_size=H,
            dtype=torch.float32,
            max_tokens=tokens,
        )
        held = list(ep.local_expert_ids)
        local = cm.Experts(gate_up[held], down[held]).pack()

        out = ep.moe(hidden, logits, local)  # the whole layer

        routing = ep.route(logits)  # or step by step, with work of your own in between
        handle = ep.dispatch_async(hidden, routing)
        shared = hidden.sin()  # runs while the rows travel
        arrived = handle.wait()
        y = ep.run_experts(arrived, local)
        assert torch.equal(ep.combine(y, arrived) + shared, out + shared)

        alone = cm.moe(hidden, logits, cm.Experts(gate_up, down), GATING, capacity)
        torch.testing.assert_close(out, alone, rtol=1e-4, atol=1e-4)
        received = [None] * ranks
        dist.all_gather_object(received, int(arrived.routing.tokens_per_expert.sum()))
        if rank == 0:
            bound = ep.capacity_rows and ranks * len(held) * ep.capacity_rows
            print(f"{name}: rows received {received}, bound {bound}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
