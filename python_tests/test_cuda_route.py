"""route of the CUDA backend, gate and select in one block: what select makes of the same gate."""

from __future__ import annotations

import shutil

import pytest
import torch

import capmoe_kernels as cm

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

import cuda_route as cr
import cuda_select as cs

DROPLESS = cm.Capacity()


def gate_of(tokens, experts, columns, **options):
    gate = {"top_k": columns, "num_groups": 1, "topk_groups": 1, "scaling": 1.0} | options
    return cr.Gate(tokens=tokens, num_experts=experts, columns=columns, **gate)


def check_route(tokens, experts, gate, capacity=DROPLESS, bias=None, seed=0, **options):
    """route decides exactly as select on what the device's own gate says."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=g).mul(2).round().div(2)
    ids, weights, scores, alone = cr.gated(logits, gate, bias)
    asked = cs.Asked(ids, weights, scores, experts, capacity, gate.top_k, **options)
    got, report = cr.routed(logits, gate, asked, bias, seed % 4)
    asked.assert_selected(got)
    return report.counts["warp_instructions"] - alone


@pytest.mark.parametrize("shape", [(1, 64, 8), (1, 1, 1), (7, 60, 4), (64, 64, 8), (90, 8, 2)])
@pytest.mark.parametrize("factor", [None, 0.5, 1.0])
def test_route(shape, factor):
    tokens, experts, columns = shape
    mask = torch.arange(tokens) % 3 != 1
    for seed, options in enumerate(({}, {"token_mask": mask}, {"kept_weight_sum": 2.5}, {})):
        bias = torch.arange(experts) / experts if seed == 3 else None
        check_route(
            tokens,
            experts,
            gate_of(tokens, experts, columns),
            cm.Capacity(factor),
            bias,
            seed,
            **options,
        )


@pytest.mark.parametrize("columns", [3, 8])
def test_route_with_extra_candidates(columns):
    """Beyond the top two: by rank, for rerouting and for Expanded Drop."""
    gate = gate_of(40, 12, columns, expand=2)
    gate.top_k = 2
    classes = torch.arange(40) % 2
    for seed, options in enumerate(
        ({}, {"rounds": 3}, {"topk_first": True, "row_alignment": 8}, {"token_priority": classes})
    ):
        for capacity in (cm.Capacity(), cm.Capacity(limit=4, max_experts_per_token=2)):
            check_route(40, 12, gate, capacity, seed=seed, **options)
    device = cm.Capacity(limit=3, scope="device", experts_per_device=4)
    check_route(40, 12, gate, device, layout="packed")


@pytest.mark.parametrize(("shape", "most"), [((1, 64, 8), 500), ((64, 64, 8), 512 * 8)], ids=str)
def test_instructions_of_route_beyond_the_gate(shape, most):
    tokens, experts, columns = shape
    assert check_route(tokens, experts, gate_of(tokens, experts, columns)) <= most
