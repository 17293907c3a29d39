"""Transformers 5's experts-implementation registry: any such model on these kernels, dropless."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.activations import ACT2FN

from capmoe_kernels.integrations.experts_implementation import read_experts
from capmoe_kernels.integrations.transformers import apply, register_experts_implementation
from tiny_model import EXPERTS, TOP_K, logits_of, save_tiny, tiny_model, token_ids

CLOSE = {"atol": 2e-5, "rtol": 1e-5}

ROUTED = {"n_routed_experts": EXPERTS, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16}
MODELS = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": EXPERTS}),
    "qwen2_moe": (
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
        {
            "num_experts": EXPERTS,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "deepseek_v3": (
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        {**ROUTED, "first_k_dense_replace": 0, "kv_lora_rank": 8, "q_lora_rank": 8},
    ),
    "gpt_oss": (  # transposed, interleaved, with biases and a gate of its own
        GptOssConfig,
        GptOssForCausalLM,
        {"num_local_experts": EXPERTS, "head_dim": 16, "layer_types": ["full_attention"]},
    ),
    "nemotron_h": (  # experts without a gate
        NemotronHConfig,
        NemotronHForCausalLM,
        {
            **ROUTED,
            "layers_block_type": ["attention", "moe"],
            "moe_shared_expert_intermediate_size": 16,
            "head_dim": 16,
        },
    ),
}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register_experts_implementation()
    register_experts_implementation("capmoe-packed", pack=True)


@pytest.fixture(scope="module")
def input_ids():
    return token_ids(2, 30)


def random_model(name):
    config, model_class, own = MODELS[name]
    sizes = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": TOP_K,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    model = model_class(config(**(sizes | own))).eval()
    for parameter in model.parameters():
        if not parameter.abs().sum():  # biases begin as zeros, and would say nothing
            parameter.data.normal_(0, 0.2)
    return model


def experts_of(model):
    return next(m for m in model.modules() if hasattr(m, "_is_expert_parallel"))


@pytest.mark.parametrize("implementation", ["capmoe", "capmoe-packed"])
@pytest.mark.parametrize("name", MODELS)
def test_any_model_equals_its_eager_self(input_ids, name, implementation, monkeypatch):
    model = random_model(name)
    model.set_experts_implementation("eager")
    expected = logits_of(model, input_ids)
    model.set_experts_implementation(implementation)
    torch.testing.assert_close(logits_of(model, input_ids), expected, **CLOSE)
    # That is no accident: the kernels ran, on weights that are followed.
    experts_of(model).down_proj.data = torch.zeros_like(experts_of(model).down_proj)
    ours = logits_of(model, input_ids)
    model.set_experts_implementation("eager")
    assert (ours - expected).abs().max() > 0.01
    torch.testing.assert_close(ours, logits_of(model, input_ids), **CLOSE)


def test_from_pretrained_knows_the_name(input_ids, tmp_path):
    save_tiny(tmp_path, tokenizer=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="capmoe")
    expected = logits_of(tiny_model(), input_ids)
    torch.testing.assert_close(logits_of(model, input_ids), expected, **CLOSE)
    assert "_capmoe_experts" in vars(experts_of(model))
    torch.testing.assert_close(logits_of(apply(model), input_ids), expected, **CLOSE)
    twin = copy.deepcopy(model)
    assert vars(experts_of(twin))["_capmoe_experts"] is None
    assert torch.equal(logits_of(twin, input_ids), logits_of(model, input_ids))


def test_experts_of_other_ranks_add_nothing():
    model = tiny_model()
    experts = experts_of(model)
    experts._is_expert_parallel = True  # an id of E then means: not here
    tokens = torch.randn(9, 32)
    ids = torch.randint(0, EXPERTS + 1, (9, TOP_K), generator=torch.Generator().manual_seed(3))
    ids[0] = EXPERTS
    ids[:, 1] = torch.where(ids[:, 1] == ids[:, 0], EXPERTS, ids[:, 1])
    weights = torch.rand(9, TOP_K)
    weights[ids == EXPERTS] = 0
    outputs = []
    for implementation in ("eager", "capmoe"):
        model.set_experts_implementation(implementation)
        outputs.append(experts(tokens, ids, weights))
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)
    assert not outputs[1][0].any()


def test_a_norm_after_each_expert_is_run():
    model = tiny_model()
    experts = experts_of(model)
    experts.has_post_expert_norm = True
    experts.post_expert_norm = torch.nn.LayerNorm(32)
    tokens, weights = torch.randn(9, 32), torch.rand(9, TOP_K)
    ids = torch.tensor([[0, 3]]).expand(9, 2)
    outputs = []
    for implementation in ("batched_mm", "capmoe"):
        model.set_experts_implementation(implementation)
        outputs.append(experts(tokens, ids, weights))
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)


@pytest.mark.parametrize(
    ("hidden_act", "activation"),
    [
        ("silu", "silu"),
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
    ],
)
def test_an_activation_is_known_by_what_it_computes(hidden_act, activation):
    experts = experts_of(tiny_model(hidden_act=hidden_act))
    read = read_experts(experts)
    assert (read.activation, read.layout) == (activation, "concat")
    assert read.gate_up_proj is experts.gate_up_proj


def test_what_the_kernels_do_not_compute_is_refused_by_name(input_ids):
    model = tiny_model(hidden_act="gelu_fast")
    model.set_experts_implementation("capmoe")
    experts = experts_of(model)
    for wrong in ("quick_gelu", "relu", "tanh"):
        experts.act_fn = ACT2FN[wrong]
        with pytest.raises(ValueError, match="OlmoeExperts has an activation or a gate"):
            logits_of(model, input_ids)
    experts.act_fn = ACT2FN["silu"]
    own = type(experts)._apply_gate
    for gate in (
        lambda x: own(experts, x.clamp(max=10)),  # as DeepSeek-V4's limit
        lambda x: own(experts, x) * 1.001,
        lambda x: own(experts, x.roll(x.shape[-1] // 2, -1)),
    ):
        experts._apply_gate = gate
        with pytest.raises(ValueError, match="OlmoeExperts has an activation or a gate"):
            logits_of(model, input_ids)
    clamped = experts_of(random_model("gpt_oss"))
    clamped.limit = 9.0
    with pytest.raises(ValueError, match="GptOssExperts has an activation or a gate"):
        read_experts(clamped)


def test_names_of_transformers_stay_theirs():
    for name in ("grouped_mm", "eager"):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            register_experts_implementation(name)
    register_experts_implementation("capmoe")


def test_autograd_is_refused(input_ids):
    model = tiny_model()
    model.set_experts_implementation("capmoe-packed")
    with torch.enable_grad(), pytest.raises(RuntimeError, match="OlmoeExperts requires grad"):
        logits_of(model, input_ids)
