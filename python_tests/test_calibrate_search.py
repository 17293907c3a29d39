"""What ``capmoe calibrate`` searches, on made-up layers whose best factors are known."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from capmoe_kernels.calibrate.confidence import text_needed, upper_limit
from capmoe_kernels.calibrate.find import find
from capmoe_kernels.calibrate.knapsack import solve
from capmoe_kernels.calibrate.measured import Measured
from capmoe_kernels.calibrate.search import path_to, uniform_candidates
from capmoe_kernels.evaluate.results import paired_change

GRID = [4.0, 3.0, 2.0, 1.5, 1.0]
SIZES = torch.tensor([900.0, 400.0, 1500.0, 700.0, 300.0, 1100.0, 800.0, 600.0]).double()
PEAKS = (9000, 4000, 3500, 6000)
# What a layer loses at the factors of GRID while the others are dropless.
ALONE = (
    (0.001, 0.002, 0.006, 0.009, 0.02),
    (0.0, 0.0005, 0.001, 0.004, 0.008),
    (0.0, 0.0, 0.0005, 0.0007, 0.0011),
    (0.0002, 0.0005, 0.003, 0.005, 0.03),
)


class MadeUp:
    """A text whose losses are those of ``alone``, summed; ``scale`` is of several layers' together.

    Documents lose more and less by ``spread`` in turn; between the grid's factors the loss is that
    of the next looser one. ``calls`` has what was read.
    """

    def __init__(self, scale=1.0, spread=0.0, alone=ALONE, peaks=PEAKS):
        self.scale, self.alone, self.peaks = scale, alone, peaks
        self.spread = 1 + spread * (torch.arange(len(SIZES)) % 2 * 2.0 - 1).double()
        self.calls = []

    def __call__(self, factors):
        self.calls.append(factors)
        bounded = [(layer, factor) for layer, factor in enumerate(factors) if factor is not None]
        lost = sum(self.alone[at][sum(f <= each for each in GRID[1:])] for at, f in bounded)
        lost *= self.scale if len(bounded) > 1 else 1.0
        busiest = list(self.peaks)
        for layer, factor in bounded:
            busiest[layer] = min(busiest[layer], int(1000 * factor))
        return Measured(factors, SIZES * (1 + lost * self.spread), tuple(busiest), [])

    def lost(self, factors):
        found = self(factors)
        return float(found.nats.sum() / SIZES.sum()) - 1


def search(calibration=None, validation=None, sample=None, max_loss=0.01, **options):
    sample = sample or MadeUp()
    texts = sample, calibration or MadeUp(), validation or MadeUp()
    return find(texts, len(sample.peaks), GRID, max_loss, 0.95, **options)


def least_time(text, max_loss):
    """Of all combinations of the grid, by trying them."""
    combinations = product([None, *GRID], repeat=len(text.peaks))
    fitting = [each for each in combinations if text.lost(each) <= max_loss + 1e-12]
    return min(sum(text(each).busiest) for each in fitting)


@pytest.mark.parametrize("budget", [0.0, 0.01, 3.0])
def test_knapsack_equals_brute_force(budget):
    random = torch.Generator().manual_seed(3)
    for layers in (1, 2, 3, 4) * 4:
        times, losses = [], []
        for _ in range(layers):
            size = int(torch.randint(1, 7, (), generator=random))
            times.append(torch.randint(0, 500, (size,), generator=random).tolist())
            # Up to more than all there is, many of nothing.
            steps = torch.randint(-200, 1100, (size,), generator=random).clamp(0).tolist()
            unit = 0.0005 if budget == 0 else budget / 1000
            losses.append([0.0, *[step / layers * unit * 1.7 for step in steps[1:]]])
            times[-1].sort(reverse=True)
            losses[-1].sort()
        chosen = solve(times, losses, budget)
        spent = sum(layer[at] for layer, at in zip(losses, chosen, strict=True))
        assert spent <= budget * (1 + 1e-12)
        best = min(
            sum(layer[at] for layer, at in zip(times, every, strict=True))
            for every in product(*map(range, map(len, times)))
            if sum(layer[at] for layer, at in zip(losses, every, strict=True))
            <= budget * (1 - layers * 1e-6)
        )
        assert sum(layer[at] for layer, at in zip(times, chosen, strict=True)) <= best


def test_known_optimum_of_losses_that_add_up():
    found = search()
    text = MadeUp()
    assert sum(text(found.per_layer.best.candidate.factors).busiest) == least_time(text, 0.01)
    assert found.chosen == "per_layer"
    assert found.factors == found.per_layer.best.candidate.factors
    assert all(each.holds for each in found.per_layer.verdicts)
    losses = [each.loss for each in found.per_layer.verdicts]
    assert len(losses) > 3
    assert losses == sorted(losses)


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_budget_follows_the_joint_loss(scale):
    """Losses that do not add up: the layers' own may sum to more, or have to sum to less."""
    answer = search(calibration=MadeUp(scale)).per_layer
    # One factor for all, which the per-layer answer falls back on, has no prediction.
    best = [
        each for each in answer.tried if each.candidate.predicted is not None and each.loss <= 0.01
    ][-1]
    assert best.loss <= 0.01
    assert (best.candidate.predicted > 0.01) == (scale < 1)
    # The next better combination of the same kind would be over the bound.
    assert best.loss > 0.007
    assert best.time < 1


def test_uniform_is_the_tightest_that_fits():
    found = search()
    text = MadeUp()
    factors = [each.factors for each in uniform_candidates(4, GRID)]
    fits = [each for each in factors if text.lost(each) <= 0.01]
    assert found.uniform.best.candidate.factors == fits[-1]
    assert {(factor,) * 4 for factor in GRID} <= set(factors)
    assert factors == sorted(factors, key=lambda each: -(each[0] or 99))


def test_alike_layers_get_one_factor():
    """Per layer is no better there, so the simpler answer is taken."""
    alike = {"alone": ALONE[:1] * 3, "peaks": PEAKS[:1] * 3}
    # 3 layers at 4.0 fit, one at 3.0 more does not.
    found = search(*(MadeUp(**alike) for _ in range(2)), sample=MadeUp(**alike), max_loss=0.0035)
    assert found.chosen == "uniform"
    assert found.per_layer.best.time >= found.uniform.best.time
    assert found.factors == found.uniform.proven.candidate.factors
    assert len(set(found.factors)) == 1


def test_per_layer_is_never_behind_one_factor_for_all():
    """A sample that says all layers are hopeless: the uniform answer is a candidate even so."""
    hopeless = MadeUp(alone=[[0.5] * 5] * 4)
    found = search(sample=hopeless)
    assert found.uniform.best.time < 1
    assert found.per_layer.best == found.uniform.best
    assert found.per_layer.tried[-1] == found.uniform.best
    assert found.per_layer.verdicts[-1].candidate == found.uniform.best.candidate
    assert found.chosen == "uniform"  # no better, and simpler


def test_validation_that_loses_more_gets_safer_factors():
    found = search(validation=MadeUp(1.6))
    proven = found.per_layer.proven
    assert found.per_layer.best.loss > 0.008
    assert proven.candidate.factors != found.per_layer.best.candidate.factors
    assert any(proven.candidate.factors)
    text = MadeUp(1.6)
    assert text.lost(proven.candidate.factors) == pytest.approx(proven.loss)
    assert proven.loss <= 0.01
    assert not found.per_layer.verdicts[-1].holds
    assert found.per_layer.verdicts[-1].loss > 0.01


def test_validation_stops_at_the_first_failure():
    """What comes behind it is not even read: looking would need a correction."""
    validation = MadeUp(4.0)
    found = search(validation=validation)
    for answer in (found.per_layer, found.uniform):
        *passed, failed = [each.holds for each in answer.verdicts]
        assert all(passed)
        assert not failed
    read = {each.candidate.factors for a in (found.per_layer, found.uniform) for each in a.verdicts}
    assert set(validation.calls) == read | {(None,) * 4}


def test_upper_end_of_the_interval_must_fit_too():
    """The same mean loss on both texts, but it varies among the documents of one."""
    sure, unsure = search(), search(validation=MadeUp(spread=0.8))
    assert all(each.upper == pytest.approx(each.loss) for each in sure.per_layer.verdicts)
    proven, failed = unsure.per_layer.proven, unsure.per_layer.verdicts[-1]
    assert proven.upper <= 0.01
    assert failed.loss <= 0.01 < failed.upper
    assert unsure.factors != sure.factors
    # Two kinds of answers are tested, so each has half of the chance to err.
    assert failed.upper == upper_limit(failed.measured.nats, unsure.validation.nats, 0.975)


def test_nothing_fits_and_layers_stay_dropless():
    hopeless = {"alone": [[0.5] * 5] * 4}
    found = search(*(MadeUp(**hopeless) for _ in range(2)), sample=MadeUp(**hopeless))
    assert found.factors == (None,) * 4
    assert [len(curve) for curve in found.curves] == [1] * 4
    assert found.answer.verdicts == []


def test_curves_are_monotone_and_not_longer_than_needed():
    """A gain is not believed, what drops nothing is not read, nor what is beyond all budgets."""
    alone = ((0.0, 0.004, -0.003, 0.005, 0.006), (0.0, 0.001, 0.03, 0.04, 0.05))
    sample = MadeUp(alone=alone, peaks=PEAKS[:2])
    texts = [MadeUp(alone=alone, peaks=PEAKS[:2]) for _ in range(2)]
    found = search(*texts, sample=sample, drops=lambda layer, factor: factor <= 3.0 + layer)
    first, second = found.curves
    assert [choice.factor for choice in first] == [None, 3.0, 2.0, 1.5, 1.0]
    assert [choice.charged for choice in first] == pytest.approx([0, 0.004, 0.004, 0.005, 0.006])
    assert first[2].loss == pytest.approx(-0.003)
    assert [choice.factor for choice in second] == [None, 4.0, 3.0]
    assert (None, 2.0) in sample.calls
    assert (None, 1.5) not in sample.calls
    assert (4.0, None) not in sample.calls


def test_path_goes_in_even_steps_of_the_loss():
    losses = {0: 0.0, 10: 0.0, 20: 0.012, 25: 0.05}
    path = path_to(20, losses)
    assert path[-1] == 20
    assert path == sorted(set(path))
    assert min(path) >= 9  # up to there nothing is lost
    assert path_to(0, {0: 0.0}) == []
    assert path_to(1, {0: 0.0, 1: 0.01}) == [1]


def test_upper_limit_is_near_the_ratio_estimator_s():
    """For many documents the bootstrap meets the normal interval; and it is paired."""
    random = torch.Generator().manual_seed(5)
    base = 500 + 1000 * torch.rand(200, generator=random).double()
    nats = base * (1.01 + 0.02 * torch.randn(200, generator=random).double())
    change, error = paired_change(nats, base, base)
    ln2 = 0.6931471805599453
    expected = ln2 * (change + 1.645 * error)
    assert upper_limit(nats, base, 0.95) == pytest.approx(expected, rel=0.05)
    assert upper_limit(nats, base, 0.5) == pytest.approx(ln2 * change, rel=0.05)
    assert upper_limit(1.02 * base, base, 0.95) == pytest.approx(0.02)
    assert upper_limit(base, base, 0.95) == 0.0


def test_text_needed():
    assert text_needed(0.004, 0.006, 0.005) == pytest.approx(4.0)
    assert text_needed(0.005, 0.006, 0.005) is None
    assert text_needed(0.004, float("inf"), 0.005) is None
