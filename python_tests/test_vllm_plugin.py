"""The vLLM plugin's contract, with a stand-in for vLLM; test_vllm_serving.py has the real one."""

from __future__ import annotations

import logging
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import capmoe_kernels as cm
import vllm_stand_in
from capmoe_kernels.compat import fused_experts
from capmoe_kernels.integrations import vllm as plugin
from capmoe_kernels.integrations.vllm_method import _announce
from checks import same_bits
from compat_cases import assert_runs, decide, layer, local

FACTOR, POLICY, LEAST = (
    f"CAPMOE_VLLM_{name}" for name in ("CAPACITY_FACTOR", "POLICY", "MIN_TOKENS")
)
NAME = "UnquantizedFusedMoEMethod"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (FACTOR, POLICY, LEAST):
        monkeypatch.delenv(name, raising=False)
    _announce.cache_clear()


@pytest.fixture
def stand_in(monkeypatch):
    return vllm_stand_in.install(monkeypatch)


def test_the_entry_point_is_register():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    table = re.search(r'\[project\.entry-points\."(.+?)"\]\ncapmoe = "(.+?)"', text)
    assert table is not None
    assert table[1] == "vllm.general_plugins"
    assert EntryPoint("capmoe", table[2], table[1]).load() is plugin.register


def test_nothing_happens_unless_it_is_asked_for(stand_in):
    _, registry, environment = stand_in
    plugin.register()
    assert registry == {}
    assert environment == {}


def test_a_policy_and_a_least_step_alone_ask_for_nothing():
    assert plugin.settings({POLICY: "keep_last", LEAST: "8"}) is None


def test_without_vllm_it_says_so_and_returns(monkeypatch, caplog):
    monkeypatch.setenv(FACTOR, "1.5")
    monkeypatch.setitem(sys.modules, "vllm", None)
    plugin.register()
    assert "serves no layer: this is not vLLM 0.32" in caplog.text


def test_another_vllm_is_left_alone(monkeypatch, stand_in, caplog):
    monkeypatch.setenv(FACTOR, "1.5")
    monkeypatch.delattr(sys.modules["vllm.model_executor.custom_op"], "CustomOp")
    plugin.register()
    assert "serves no layer: this is not vLLM 0.32" in caplog.text


def test_it_registers_once_and_beside_no_other(monkeypatch, stand_in, caplog):
    _, registry, environment = stand_in
    monkeypatch.setenv(FACTOR, "1.5")
    plugin.register()
    ours = registry[NAME]
    assert ours.__name__ == "CapmoeFusedMoEMethod"
    assert {name: read() for name, read in environment.items()} == {
        FACTOR: "1.5",
        POLICY: None,
        LEAST: None,
    }
    plugin.register()
    assert registry == {NAME: ours}
    assert caplog.text == ""
    registry[NAME] = torch.nn.Linear
    plugin.register()
    assert registry == {NAME: torch.nn.Linear}
    assert "another plugin replaced UnquantizedFusedMoEMethod" in caplog.text


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({FACTOR: "1,5"}, f"{FACTOR} and {POLICY} must make a Capacity: could not"),
        ({FACTOR: "-1"}, "factor must be a number >= 0"),
        ({FACTOR: "1", POLICY: "best"}, "Capacity.policy must be one of"),
        ({FACTOR: "1", LEAST: "0"}, f"{LEAST} must be an int >= 1, got '0'"),
        ({FACTOR: "1", LEAST: "8.0"}, f"{LEAST} must be an int >= 1, got '8.0'"),
        ({POLICY: "bogus"}, "Capacity.policy must be one of"),
        ({LEAST: "many"}, f"{LEAST} must be an int >= 1, got 'many'"),
        ({"CAPMOE_VLLM_FACTOR": "1"}, "CAPMOE_VLLM_FACTOR is no setting: there are"),
    ],
)
def test_settings_that_there_are_not(environment, match):
    with pytest.raises(ValueError, match=match):
        plugin.settings(environment)


def make(monkeypatch, stand_in, moe=None, **environment):
    """What vLLM's layer gets when it asks for its method."""
    for name, value in {FACTOR: "1.0", **environment}.items():
        monkeypatch.setenv(name, value)
    plugin.register()
    return stand_in[0](vllm_stand_in.moe_config() if moe is None else moe)


def run(method, own, x, weights, ids):
    method.process_weights_after_loading(own)
    return method.apply(own, x, weights, ids, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", ["inf", "1.0"])
def test_a_layer_is_bounded_and_runs_on_these_kernels(monkeypatch, stand_in, factor, dtype, caplog):
    caplog.set_level(logging.INFO)
    x, experts, weights, ids = layer(dtype, bias=True)
    moe = vllm_stand_in.moe_config(has_bias=True)
    method = make(monkeypatch, stand_in, moe, **{FACTOR: factor})
    own = vllm_stand_in.Layer(experts)
    out = run(method, own, x, weights, ids)
    assert_runs(out, x, experts, decide(ids, weights, cm.Capacity(factor=float(factor))))
    assert own.w2_weight.data_ptr() == method.experts.down_proj.data_ptr(), "one copy of weights"
    assert not method.is_monolithic
    assert not method.supports_eplb
    assert not method.supports_pre_processed_weights
    assert method.unquantized_backend.name == "OOT"
    assert caplog.text.count(f"capacity factor {factor}, policy score") == 1


def test_policy_and_small_steps(monkeypatch, stand_in):
    x, experts, weights, ids = layer()
    method = make(monkeypatch, stand_in, **{POLICY: "keep_last", LEAST: "40"})
    own = vllm_stand_in.Layer(experts)
    out = run(method, own, x, weights, ids)
    assert_runs(out, x, experts, decide(ids, weights, cm.Capacity(1.0, policy="keep_last")))
    few = x[:39], weights[:39], ids[:39]
    out = method.apply(own, *few, None, None)
    assert_runs(out, x[:39], experts, decide(ids[:39], weights[:39], cm.Capacity()))
    compiled = torch.compile(
        lambda *tensors: method.apply(own, *tensors, None, None), backend="eager", fullgraph=True
    )
    with pytest.raises(Exception, match="CAPMOE_VLLM_MIN_TOKENS must be 1 where vLLM compiles"):
        compiled(*few)


def test_expert_parallelism_and_weights_on_the_input(monkeypatch, stand_in):
    x, experts, weights, ids = layer()
    expert_map = torch.tensor([-1, 0, -1, 1, 2, -1, -1, 3], dtype=torch.int32)
    mine = [1, 3, 4, 7]
    rank = cm.Experts(experts.gate_up_proj[mine], experts.down_proj[mine])
    own = vllm_stand_in.Layer(rank, expert_map=expert_map, num_experts=8)
    method = make(monkeypatch, stand_in)
    out = run(method, own, x, weights, ids)
    assert_runs(out, x, rank, local(decide(ids, weights, cm.Capacity(1.0)), expert_map))

    own.apply_router_weight_on_input = True
    expected = fused_experts(
        x,
        rank.gate_up_proj,
        rank.down_proj,
        weights,
        ids,
        apply_router_weight_on_input=True,
        expert_map=expert_map,
        capacity=cm.Capacity(1.0),
    )
    assert same_bits(method.apply(own, x, weights, ids, None, None), expected)
    twice = vllm_stand_in.Layer(rank, expert_map=expert_map.clamp(min=0), num_experts=8)
    with pytest.raises(ValueError, match="expert_map must send no two experts"):
        method.process_weights_after_loading(twice)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"is_lora_enabled": True}, "with LoRA: unset CAPMOE_VLLM_CAPACITY_FACTOR"),
        ({"enable_eplb": True, "dp_size": 2}, r"expert load balancing \(EPLB\), data parallelism"),
        ({"pcp_size": 2}, "prefill context parallelism"),
        ({"aiter_fmoe_shared_expert_enabled": True}, "fused shared experts"),
        ({"activation": "situ"}, "activation must be one of .* got 'situ'"),
        ({"swiglu_limit": 10.0}, "gemm1_clamp_limit must be None"),
    ],
)
def test_layers_that_these_kernels_lack(monkeypatch, stand_in, settings, match):
    with pytest.raises(ValueError, match=match):
        make(monkeypatch, stand_in, vllm_stand_in.moe_config(**settings))
