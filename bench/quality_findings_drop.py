"""The paper's findings on loads, on who stays, and on what dropping costs."""

from __future__ import annotations

import itertools
from dataclasses import replace

from .quality_marks import Finding, listed, mark, tally
from .quality_results import Results
from .quality_settings import CONVERTED, OWN, SKIPPED, Case, bounded
from .quality_words import percent, signed, times

_SKEW = 7.0  # the paper's busiest expert over the mean, on OLMoE
_LITTLE = 0.01  # of the dropless loss: what counts as next to nothing
_SHARE, _GAIN = 0.12, 1.85  # "dropping 12 % of tokens", 1.85 times faster
_ALIKE = 0.1  # Table 1: Order and Reverse Order differ by at most a tenth of what they lose


def skew(results: Results) -> Finding:
    peaks = [layer["expert_before"] for layer in results.layers(OWN)]
    devices = [layer["device_before"] for layer in results.layers(OWN)]
    return Finding(
        "Loads are uneven at inference: OLMoE's busiest expert gets over 7 times the mean",
        f"the busiest expert of some layer is over {_SKEW:g}x; in part: over 2x in every layer",
        f"layers 1 to {len(peaks)}: {_joined(peaks)} the mean; busiest of 8 devices"
        f" {_joined(devices)}",
        mark([max(peaks) > _SKEW, min(peaks) > 2]),
    )


def _joined(numbers: list[float]) -> str:
    return ", ".join(times(number) for number in numbers)


def best_by_score(results: Results, like: Case = OWN, title: str = "") -> Finding:
    factors = results.scale.factors if like == OWN else results.scale.few
    held, said = [], {}
    for factor in factors:
        base = bounded(like, factor)
        more = [
            results.change(bounded(like, factor, policy=policy), base)
            for policy in ("random", "keep_first", "keep_last")
        ]
        held += [each.above for each in more]
        said[factor] = " / ".join(signed(each) for each in more)
    return Finding(
        title + "Keeping the best-scored tokens beats random, first (Order) and last (Reverse"
        " Order) at every factor (Table 1)",
        "each of the three loses more at every factor",
        f"{tally(held, 'lose more')}; than by score, random / first / last: "
        + listed(said, results.scale.few),
        mark(held),
    )


def best_by_score_converted(results: Results) -> Finding:
    return best_by_score(results, CONVERTED, "Converted: ")


def random_beats_position(results: Results) -> Finding:
    held, said = [], {}
    for factor in results.scale.factors:
        base = bounded(OWN, factor, policy="random")
        more = [
            results.change(bounded(OWN, factor, policy=policy), base)
            for policy in ("keep_first", "keep_last")
        ]
        held += [each.above for each in more]
        said[factor] = " / ".join(signed(each) for each in more)
    return Finding(
        "Random order beats both orders by position (Table 1)",
        "first and last lose more than random at every factor",
        f"{tally(held, 'lose more')}; than by random, first / last: "
        + listed(said, results.scale.few),
        mark(held),
    )


def first_is_like_last(results: Results) -> Finding:
    held, said = [], {}
    for factor in results.scale.factors:
        first = bounded(OWN, factor, policy="keep_first")
        last = bounded(OWN, factor, policy="keep_last")
        more, loss = results.change(last, first), results.change(first, OWN)
        held.append(abs(more.value) < _ALIKE * loss.value)
        said[factor] = f"{signed(more)}, {percent(more.value / loss.value)} of the loss"
    return Finding(
        "Keeping the first and keeping the last tokens lose about the same (Table 1)",
        "they differ by less than a tenth of the loss at every factor",
        f"{tally(held, 'are alike')}; last against first: " + listed(said, results.scale.few),
        mark(held),
    )


def little_is_lost(results: Results) -> Finding:
    dropless = results.bits(OWN)
    said, ends = {}, {}
    for factor in results.scale.factors:
        change = results.change(bounded(OWN, factor), OWN)
        ends[factor] = change.high / dropless
        dropped = percent(results.dropped(bounded(OWN, factor)))
        said[factor] = f"{percent(change.value / dropless)} ({dropped} of the pairs dropped)"
    return Finding(
        "By score nothing is lost at factor 2 (64.0 against 64.0, Table 1) and little at 1.5"
        " (63.1)",
        f"the loss is at most {_LITTLE:.0%} higher, interval included; in part: at one of the two",
        "loss, of the dropless: " + listed(said, results.scale.factors),
        mark([ends[factor] < _LITTLE for factor in (1.5, 2.0)]),
    )


def loss_falls_with_factor(results: Results) -> Finding:
    factors = sorted(results.scale.factors)
    steps = {
        high: results.change(bounded(OWN, high), bounded(OWN, low))
        for low, high in itertools.pairwise(factors)
    }
    return Finding(
        "The higher the factor, the less is lost (Figure 12, factors 0 to 3)",
        "every step up gains, beyond chance",
        "step up to " + listed({each: signed(step) for each, step in steps.items()}, factors[1:]),
        mark([step.below for step in steps.values()]),
    )


def small_share_large_gain(results: Results) -> Finding:
    factor, case = _at_the_papers_share(results)
    bound, share = results.load(case)["expert_bound"], results.dropped(case)
    return Finding(
        "A small share of the pairs makes the stragglers: dropping 12 % made Mixtral, with an"
        " expert per GPU, 1.85 times faster",
        f"at the factor whose dropped share is nearest to 12 %, the bound of the busiest expert is"
        f" {_GAIN}x or more; a bound, not a time",
        f"factor {factor:g} drops {percent(share)}, bound {times(bound)}",
        mark([bound >= _GAIN]),
    )


def _at_the_papers_share(results: Results) -> tuple[float, Case]:
    """Token Drop where it drops about what it did in the paper, and the factor of that."""

    def far(factor: float) -> float:
        return abs(results.dropped(bounded(OWN, factor)) - _SHARE)

    nearest = min(results.scale.factors, key=far)
    return nearest, bounded(OWN, nearest)


def devices_average(results: Results) -> Finding:
    loads = {each: results.load(bounded(OWN, each)) for each in results.scale.factors}
    return Finding(
        "Several experts per device gain less than one (Mixtral, factor 1.5: 1.54 against 1.87"
        " times)",
        "at every factor, the bound of 8 experts on a device is below that of one",
        "8 per device / one: "
        + listed(
            {
                factor: f"{times(load['device_bound'])} / {times(load['expert_bound'])}"
                for factor, load in loads.items()
            },
            results.scale.few,
        ),
        mark([load["device_bound"] < load["expert_bound"] for load in loads.values()]),
    )


def expert_drop(results: Results) -> Finding:
    skip = replace(OWN, skipped=SKIPPED)
    factor, drop = _at_the_papers_share(results)
    change, loads = results.change(skip, OWN), (results.load(skip), results.load(drop))
    against = results.change(skip, drop)
    held = [
        against.above,
        results.dropped(skip) < results.dropped(drop),
        loads[0]["expert_bound"] < 1.05,
    ]
    return Finding(
        "Leaving out the tenth of the experts with the least load (Expert Drop) drops far less than"
        " Token Drop, loses more, and is hardly faster (Table 2; 2 % of the tokens against 12 %)",
        "against Token Drop at the factor whose dropped share is nearest to 12 %: it loses more,"
        " beyond chance; it drops less; its bound is under 1.05x",
        f"loss {signed(change)}, {signed(against)} against Token Drop at factor {factor:g}; dropped"
        f" {percent(results.dropped(skip))} against {percent(results.dropped(drop))}; bound"
        f" {times(loads[0]['expert_bound'])} against {times(loads[1]['expert_bound'])}",
        mark(held),
    )
