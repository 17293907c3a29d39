"""Architectures that are not registered: their own router, our experts, Token Drop of its choice.

test_architectures_shapes.py has what does not fit.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import oracle
import oracle_mlp
from capmoe_kernels import Capacity, Experts
from capmoe_kernels.integrations.transformers import (
    apply,
    capacity_scope,
    find_moe_blocks,
    recording,
    supported,
    undo,
)
from checks import assert_close_to_truth

if not transformers.__version__.startswith("5."):
    pytest.skip("experts have a shape of their own since Transformers 5", allow_module_level=True)

EXPERTS = 4
_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS = {
    "phimoe": {"num_local_experts": EXPERTS},
    "granitemoe": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_num_experts": EXPERTS, "moe_k": 2, "moe_layer_start_index": 0},
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": 2},
    "jamba": {
        "num_experts": EXPERTS,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_period": 1,
        "attn_layer_offset": 0,
    },
    "lfm2_moe": {
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_dense_layers": 0,
        "layer_types": ["full_attention", "full_attention"],
    },
    # Experts without a gate, of squared ReLU.
    "nemotron_h": {
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "layers_block_type": ["attention", "moe"],
    },
}


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def build(model_type, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **_SIZES | MODELS[model_type])
    model = AutoModelForCausalLM.from_config(config).eval()
    for module in model.modules():
        if hasattr(module, "has_gate"):
            for tensor in module.parameters():
                tensor.normal_(std=0.3)
    return model.to(dtype)


def logits_of(model, seed=1):
    ids = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(seed))
    return model(ids, use_cache=False).logits


def held(module):
    """Copies of the weights of an experts module."""
    up = module.gate_up_proj if module.has_gate else module.up_proj
    activation = "silu" if module.has_gate else "relu2_no_mul"
    return Experts(up.clone(), module.down_proj.clone(), activation=activation)


def truth_and_same_dtype(module, hidden, ids, weights, capacity):
    decision = oracle.select(
        ids.tolist(), weights.tolist(), weights.tolist(), module.num_experts, capacity
    )
    experts = held(module)
    truth, same = torch.zeros(hidden.shape, dtype=torch.float64), torch.zeros_like(hidden)
    for t, line in enumerate(decision.expert_ids):
        for column, e in enumerate(line):
            if decision.rows[t][column] >= 0:
                weight = decision.weights[t][column]
                truth[t] += weight * oracle_mlp.expert_mlp(hidden[t], experts, e)
                same[t] += oracle_mlp.same_dtype_mlp(hidden[t : t + 1], experts, e)[0] * weight
    return truth, same


@pytest.mark.parametrize("model_type", MODELS)
def test_dropless_gives_the_models_own_logits(model_type):
    assert model_type not in supported()
    model = build(model_type)
    expected = logits_of(model)
    blocks = find_moe_blocks(model)
    assert len(blocks) == (1 if model_type == "nemotron_h" else 2)
    assert all(type(block.module).__name__.endswith("Experts") for block in blocks)
    with recording(apply(model)) as records:
        got = logits_of(model)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert len(records) == len(blocks)
    assert torch.equal(logits_of(undo(model)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", MODELS)
def test_the_experts_equal_their_own_and_the_oracle(model_type, dtype):
    model = build(model_type, dtype)
    module = find_moe_blocks(model)[0].module
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(30, 32, generator=generator).to(dtype)
    ids = torch.rand(30, EXPERTS, generator=generator).topk(2).indices
    # In 16 bits some weights tie, and the kernels and the oracle break ties alike.
    weights = torch.rand(30, 2, generator=generator).to(dtype)
    theirs = module(hidden, ids, weights)
    apply(model)
    for capacity in (Capacity(), Capacity(factor=0.75)):
        with capacity_scope(model, capacity):
            ours = module(hidden, ids, weights)
        truth, same = truth_and_same_dtype(module, hidden, ids, weights.float(), capacity)
        assert_close_to_truth(ours, truth, same)
        if capacity == Capacity():
            assert_close_to_truth(ours, truth, theirs)
    undo(model)
    assert torch.equal(module(hidden, ids, weights), theirs)
