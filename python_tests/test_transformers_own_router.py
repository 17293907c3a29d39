"""Models found by shape, bounded: their experts see no [B, S], so mask and step must reach them."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import Capacity
from capmoe_kernels.integrations.transformers import apply, recording
from test_architectures_by_shape import EXPERTS, build

TOP_K, LAYERS, NEW = 2, 2, 4
HALF = Capacity(factor=0.5)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def inputs():
    """Three prompts of 24 tokens, the first with 9 of padding on its left."""
    mask = torch.ones(3, 24, dtype=torch.long)
    mask[0, :9] = 0
    ids = torch.randint(1, 64, (3, 24), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("model_type", ["granitemoe", "phimoe"])
def test_padding_is_not_counted_and_decoding_is_dropless(inputs, model_type):
    model = apply(build(model_type), capacity=HALF)
    with recording(model) as records:
        model.generate(
            **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
    assert [each.num_tokens for each in records] == [63] * LAYERS + [3] * LAYERS * (NEW - 1)
    limit = cm.expert_capacity(63, EXPERTS, TOP_K, 0.5)
    padding = ~inputs["attention_mask"].flatten().bool()
    for prefill in records[:LAYERS]:
        assert int(prefill.demand_per_expert.sum()) == 63 * TOP_K
        assert int(prefill.tokens_per_expert.max()) == limit
        assert (prefill.routings[0].rows[padding] < 0).all()
    for step in records[LAYERS:]:
        assert int(step.tokens_per_expert.sum()) == 3 * TOP_K


def test_a_bound_of_decoding_bounds_nothing_else(inputs):
    model = apply(build("granitemoe"), decode=Capacity(limit=1))
    with recording(model) as records:
        model.generate(
            **inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0
        )
    kept = [int(each.tokens_per_expert.sum()) for each in records[:LAYERS]]
    assert kept == [63 * TOP_K] * LAYERS
    assert all(int(each.tokens_per_expert.max()) == 1 for each in records[LAYERS:])
