"""The parts of ``capmoe bench``: turns, clocks, memory, and answers known another way."""

from __future__ import annotations

import json
from importlib.resources import files
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import capmoe_kernels as cm
from capmoe_kernels.benchmark import memory, timing
from capmoe_kernels.benchmark.cases import Case, make_experts, make_inputs
from capmoe_kernels.benchmark.cold import Cold, filler_bytes
from capmoe_kernels.benchmark.contenders import contenders
from capmoe_kernels.benchmark.loop import truth
from capmoe_kernels.benchmark.models import PRESETS, Preset, Shape
from capmoe_kernels.benchmark.results import Cell, Result
from capmoe_kernels.benchmark.timing import Clock, choose_clock, take_turns
from capmoe_kernels.evaluate.errors import UsageError

LAYER = Preset(Shape(32, 24, 8, 2), cm.Gating(2, renormalize="topk"))
CPU = torch.device("cpu")


def case_of(tokens, seed=3):
    random = torch.Generator().manual_seed(seed)
    inputs = make_inputs(LAYER.shape, torch.float32, tokens, 1.0, CPU, random)
    return Case(*inputs, make_experts(LAYER.shape, torch.float32, CPU, random), LAYER.gating)


@pytest.mark.parametrize("factor", [None, 1.0])
def test_truth_and_loop_are_the_layer(factor):
    """Against every expert for every token, in float64, by the routing of another entry."""
    case = case_of(40)
    capacity = cm.Capacity(factor=factor)
    routing = cm.route(case.logits, case.gating, capacity)
    found = case.routing if factor is None else case.bounded(capacity)
    assert torch.equal(found.tokens_per_expert, routing.tokens_per_expert)
    assert torch.equal(found.rows < 0, routing.rows < 0)
    assert (routing.rows < 0).any() == (factor is not None)
    experts = case.experts
    gate, up = torch.einsum("th,efh->tef", case.x.double(), experts.gate_up_proj.double()).chunk(
        2, dim=-1
    )
    y = torch.einsum("tef,ehf->teh", F.silu(gate) * up, experts.down_proj.double())
    weights = torch.zeros(40, 8, dtype=torch.float64)
    weights.scatter_(1, routing.expert_ids.long(), routing.weights.double())
    expected = torch.einsum("te,teh->th", weights, y)
    torch.testing.assert_close(truth(case.x, experts, found, 40), expected, rtol=1e-6, atol=1e-6)
    if factor is None:
        torch.testing.assert_close(case.loop().double(), expected, rtol=1e-5, atol=1e-5)


def test_inputs_follow_the_seed_and_the_skew():
    first, again, other = (case_of(16, seed) for seed in (1, 1, 2))
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.experts.down_proj, again.experts.down_proj)
    assert not torch.equal(first.logits, other.logits)
    peaks = []
    for skew in (0.0, 0.5, 1.5):
        random = torch.Generator().manual_seed(0)
        logits = make_inputs(LAYER.shape, torch.float32, 2000, skew, CPU, random)[1]
        peaks.append(int(cm.route(logits, LAYER.gating).demand_per_expert.max()))
    assert peaks == sorted(set(peaks))


def test_samples_take_turns_and_the_slow_leave_first(monkeypatch):
    now, turns = [0.0], []
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])

    def spend(name, seconds):
        turns.append(name)
        now[0] += seconds

    clock = Clock("fake", lambda call: call() or 0.5)
    calls = {"slow": lambda: spend("slow", 4.0), "fast": lambda: spend("fast", 0.75)}
    before = []
    samples = take_turns(calls, clock, 3.0, lambda name: before.append(name))
    assert turns == before == ["slow", "fast"] * 3 + ["fast"]
    assert samples == {"slow": [0.5] * 3, "fast": [0.5] * 4}
    calls = {"quick": lambda: None}
    assert len(take_turns(calls, clock, 3.0)["quick"]) == timing.MOST_SAMPLES


def test_clocks(monkeypatch):
    assert choose_clock(CPU, 1).seconds is timing.cpu_seconds
    assert choose_clock(CPU, 2) == Clock("wall time of 2 threads", timing.wall_seconds)
    assert choose_clock(torch.device("cuda"), 1).seconds is timing.cuda_seconds
    done = []

    def event(enable_timing):
        assert enable_timing
        return SimpleNamespace(
            record=lambda: done.append("record"),
            synchronize=lambda: done.append("wait"),
            elapsed_time=lambda end: 2.5,
        )

    monkeypatch.setattr(torch.cuda, "Event", event)
    assert timing.cuda_seconds(lambda: done.append("call")) == 0.0025
    assert done == ["record", "call", "record", "wait"]
    assert timing.cpu_seconds(lambda: timing.time.sleep(0.05)) < 0.04
    assert timing.wall_seconds(lambda: timing.time.sleep(0.05)) >= 0.05


def test_few_tokens_find_code_in_the_caches_but_no_weights(monkeypatch):
    monkeypatch.setattr("capmoe_kernels.benchmark.cold.FILLER_BYTES", 4096)
    assert filler_bytes([64, 32]) == 4096
    assert filler_bytes([64, 33]) == 0
    who = contenders(["plain"], [], packs=False)
    cold = Cold(who, torch.float32, CPU)
    seen = []
    cold._runs = {
        name: lambda case, run=run: seen.append(run(case)) for name, run in cold._runs.items()
    }
    before = cold.of(5)
    for each in who:
        before(each.name)
    assert [out.shape for out in seen] == [(5, 64)] * 2


def test_memory_is_counted_before_and_refused(monkeypatch):
    shape = PRESETS["deepseek-v3"].shape
    weights = 3 * 256 * 7168 * 2048 * 2
    few = memory.needed_bytes(shape, 1, 2, copies=False)
    assert weights < few < 1.02 * weights
    assert memory.needed_bytes(shape, 1, 2, copies=True) == few + weights
    assert memory.needed_bytes(shape, 4096, 2, copies=False) > few + 4096 * 8 * 4 * 7168
    monkeypatch.setattr(memory, "available_bytes", lambda device: few)
    memory.check_fits("it", few, CPU)
    with pytest.raises(UsageError, match=r"it: needs 23\.1 GB of memory, and 22\.9 GB are free"):
        memory.check_fits("it", few + 2 * 10**8, CPU)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    memory.check_fits("it", few, CPU)


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_meminfo", lambda: 10**12)
    assert memory.available_bytes(CPU) == 10**12
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 50\n")
    assert memory.available_bytes(CPU) == 10**12
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.available_bytes(CPU) == 450


def test_medians_and_speeds():
    loop = Result("loop", "loop", samples=(4.0, 1.0, 2.0))
    ours = Result("plain", "capmoe", samples=(0.5, 0.25, 1.0, 9.0, 0.5))
    never = Result("packed", "packed", reason="absent")
    cell = Cell(8, [1, 1], 1.0, [ours, loop, never])
    assert loop.median == 2.0
    assert ours.quartiles == (0.5, 1.0)
    assert cell.speed(ours) == 4.0
    assert cell.speed(never) is None
    assert never.quartiles is None


def test_the_demo_s_sizes_are_the_shipped_model_s():
    config = json.loads((files("capmoe_kernels.demo") / "model" / "config.json").read_text())
    names = ("hidden_size", "intermediate_size", "num_experts", "num_experts_per_tok")
    assert PRESETS["demo"].shape == tuple(config[name] for name in names)
    for preset in PRESETS.values():
        assert preset.gating.top_k == preset.shape.top_k
        preset.gating.check_experts(preset.shape.experts)


def test_factors_that_are_not_alike_do_not_read_alike():
    names = [each.name for each in contenders(["capacity"], [1.0, 1.000004, 1.0000001], True)]
    assert len(set(names)) == 4  # the loop, too
    assert "capmoe, packed, capacity 1.000004" in names
