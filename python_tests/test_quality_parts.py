"""bench.quality's parts: what is run, the model with other experts, the statistics."""

from __future__ import annotations

import json
import math
from typing import get_args

import numpy as np
import pytest
import torch

from bench.quality_coverage import SHAPES, coverage
from bench.quality_model import changed_experts, least_loaded, mean_weight_sums, without_pairs
from bench.quality_run import MODEL, measure
from bench.quality_sections import all_cases, sections
from bench.quality_settings import CONVERTED, OWN, SKIPPED, Case, Scale, bounded
from bench.quality_statistics import Estimate, bits_per_byte, paired_change
from bench.quality_words import signed
from capmoe_kernels import Gating, capacity, gating, route
from capmoe_kernels.demo.corpus import held_out_files
from capmoe_kernels.evaluate.checkpoint import load
from capmoe_kernels.evaluate.text import make_batches, read_texts, tokenize
from capmoe_kernels.integrations.records import LayerRecord

pytestmark = pytest.mark.skipif(
    not (MODEL / "model.safetensors").is_file() or not held_out_files()[0].is_file(),
    reason="needs the demo's model and the standard library's sources",
)


@pytest.fixture(scope="module")
def checkpoint():
    return load(MODEL, "cpu")


def some_batches(checkpoint, files=2):
    documents = tokenize(read_texts(held_out_files()[:files], 256), checkpoint.tokenizer)
    return make_batches(documents, 256, 256)


# What is run


def test_everything_that_the_package_has_is_run():
    cases = all_cases(Scale())
    assert len(set(cases)) == len(cases)
    assert cases[0] == OWN
    bounds = [case.capacity for case in cases if case.capacity is not None]
    for name, kinds in {
        "policy": capacity.Policy,
        "drop_score": capacity.DropScore,
        "expand": capacity.Expand,
        "expand_priority": capacity.ExpandPriority,
        "scope": capacity.Scope,
    }.items():
        assert {getattr(bound, name) for bound in bounds} == set(get_args(kinds))
    assert {case.renormalize for case in cases} == set(get_args(gating.Renormalize))
    assert {bound.reroute_rounds for bound in bounds} == {1, 2, 3, 4}
    assert {bound.factor for bound in bounds} >= {0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0}
    assert {case.ranks for case in cases} == {1, 8}
    random = [bound for bound in bounds if bound.policy == "random" and bound.factor == 1.5]
    assert len({bound.seed for bound in random}) == 3


def test_a_table_compares_with_a_base_that_has_no_bound():
    for section in sections(Scale()):
        assert section.base == section.base.dropless()
        assert section.base.capacity is None


def test_a_case_survives_json():
    for case in all_cases(Scale()):
        assert Case.from_json(json.loads(json.dumps(case.as_json()))) == case


def test_a_bound_that_drops_nothing_changes_nothing(checkpoint):
    wide = [bounded(OWN, 16.0), bounded(OWN, 16.0, policy="keep_last", scope="device")]
    found = measure(checkpoint, some_batches(checkpoint), 2, [OWN, *wide])
    dropless, *others = found.lines
    for line in others:
        assert torch.equal(line.nats, dropless.nats)
        assert all(load.kept == load.asked for load in line.layers)
        change = paired_change(line.nats.numpy(), dropless.nats.numpy(), np.full(2, 256.0))
        assert (change.value, change.low, change.high) == (0, 0, 0)


def test_converted_models_differ_and_the_model_stays_as_it_was(checkpoint):
    before = {name: weight.clone() for name, weight in checkpoint.model.named_parameters()}
    cases = [OWN, CONVERTED, Case(renormalize="topk"), Case(skipped=SKIPPED)]
    found = measure(checkpoint, some_batches(checkpoint), 2, cases)
    own, converted, plain, skipped = (float(line.nats.sum()) for line in found.lines)
    assert own == pytest.approx(float(found.transformers.sum()), rel=5e-3)
    assert own < converted < plain  # the model was not trained so; scaling mends some of it
    assert skipped != own
    assert all(0.2 < each < 1 for each in found.weight_sums)
    for name, weight in checkpoint.model.named_parameters():
        assert torch.equal(weight, before[name])


# Expert Drop


def test_least_loaded_experts():
    (ids,) = least_loaded([torch.tensor([5, 0, 3, 0, 3])], 3)
    assert ids.tolist() == [1, 3, 2]


def test_a_skipped_experts_pairs_are_not_counted():
    logits = torch.tensor([[4.0, 3.0, 0.0], [4.0, 0.0, 3.0], [0.0, 3.0, 4.0]])
    record = LayerRecord(0, 3, 0.0, [route(logits, Gating(2))])
    after = without_pairs(record, torch.tensor([0]))
    assert record.tokens_per_expert.tolist() == [2, 2, 2]
    assert after.tokens_per_expert.tolist() == [0, 2, 2]
    (routing,) = after.routings
    assert (routing.rows >= 0).sum(1).tolist() == [1, 1, 2]
    assert after.demand_per_expert.tolist() == [2, 2, 2]


def test_mean_weight_sums():
    routing = route(torch.tensor([[0.0, 0.0], [50.0, 0.0]]), Gating(1))
    records = [LayerRecord(layer, 2, 0.0, [routing]) for layer in (1, 0, 1)]
    assert mean_weight_sums(records) == pytest.approx([0.75, 0.75])


def test_changed_experts_are_given_back_after_an_error(checkpoint):
    weights = checkpoint.model.model.layers[0].mlp.experts.down_proj
    before = weights.clone()

    def zero_two(layer, weight):
        weight.zero_()
        if layer == 1:
            raise KeyError

    with pytest.raises(KeyError), changed_experts(checkpoint.model, zero_two):
        pass
    assert torch.equal(weights, before)


# Statistics


def test_the_change_is_that_of_all_bytes_together():
    num_bytes = np.array([100.0, 300.0])
    base = np.array([70.0, 210.0])
    nats = base + math.log(2) * np.array([10.0, 90.0])
    assert paired_change(nats, base, num_bytes).value == pytest.approx(100 / 400)
    assert bits_per_byte(math.log(2) * num_bytes * 1.5, num_bytes) == pytest.approx(1.5)


def test_an_interval_of_many_files_is_the_normal_one():
    random = np.random.default_rng(1)
    count = 400
    added = random.normal(0.2, 0.05, count)
    change = paired_change(added * math.log(2), np.zeros(count), np.ones(count))
    error = added.std(ddof=1) / math.sqrt(count)
    assert change.low == pytest.approx(added.mean() - 1.96 * error, abs=0.1 * error)
    assert change.high == pytest.approx(added.mean() + 1.96 * error, abs=0.1 * error)


def test_an_interval_is_of_the_change_and_not_of_the_files():
    """Files differ far more than the change does: it must be paired."""
    random = np.random.default_rng(2)
    num_bytes = random.uniform(8000, 12288, 15)
    base = num_bytes * random.normal(1.0, 0.3, 15)
    nats = base + num_bytes * math.log(2) * random.normal(0.1, 0.01, 15)
    change = paired_change(nats, base, num_bytes)
    assert change.high - change.low < 0.03


def test_coverage_is_that_of_the_intervals(monkeypatch):
    """Some hold the mean and some do not; one that says nothing is right never holds it."""
    share = coverage(SHAPES["normal"], 60)
    assert 0.8 < share < 1
    monkeypatch.setattr("bench.quality_coverage.paired_change", lambda *_: Estimate(1, 0.5, 2))
    assert coverage(SHAPES["normal"], 5) == 0


def test_an_equal_change_in_every_file_has_no_spread():
    base = np.array([8.0, 64.0, 16.0])
    change = paired_change(base * (1 + math.log(2)), base, base)
    assert change.value == pytest.approx(1)
    assert change.high - change.low < 1e-12
    assert change.above
    assert not change.below


def test_numbers_in_words():
    change = paired_change(np.array([1.0, 1.2]), np.array([1.0, 1.0]), np.array([100.0, 100.0]))
    assert signed(change).startswith("+0.0014 [0.0000, ")
