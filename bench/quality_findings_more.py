"""The paper's findings on Expanded Drop, device scope, rerouting and renormalising."""

from __future__ import annotations

from dataclasses import replace

from .quality_marks import Finding, listed, mark, tally
from .quality_results import Results
from .quality_settings import CONVERTED, OWN, TOP_K, Case, bounded
from .quality_words import percent, signed, times

# Of what Token Drop loses: Table 2 has 0.75 for OLMoE.
_MOST, _SOME = 0.5, 0.1
_ROUNDING = 1.01  # C is rounded up, rank by rank


_CONVERTED_KEPT = replace(CONVERTED, renormalize="kept")


def expanded_recovers(results: Results, like: Case = OWN, title: str = "") -> Finding:
    scale = results.scale
    better, back, said = [], [], {}
    for factor in scale.few if like.renormalize == "kept" else scale.factors:
        drop = bounded(like, factor)
        gain = results.change(bounded(like, factor, expand="local"), drop)
        loss = results.change(drop, like.dropless()).value
        better.append(gain.below)
        back.append(-gain.value / loss)
        said[factor] = f"{signed(gain)}, {percent(-gain.value / loss)} of the loss back"
    return Finding(
        title + "Expanded Drop with the device's own experts wins back most of what Token Drop"
        " loses (Table 2: three quarters on OLMoE)",
        f"at every factor it wins back {_MOST:.0%} or more, beyond chance; in part: {_SOME:.0%} or"
        " more at some factor",
        f"{tally(better, 'are better beyond chance')}; Expanded Drop against Token Drop: "
        + listed(said, results.scale.few),
        mark(
            [
                all(better) and min(back) >= _MOST,
                any(won and share >= _SOME for won, share in zip(better, back, strict=True)),
            ]
        ),
    )


def expanded_recovers_converted(results: Results) -> Finding:
    return expanded_recovers(results, CONVERTED, "Converted: ")


def expanded_recovers_renormalised(results: Results) -> Finding:
    return expanded_recovers(results, _CONVERTED_KEPT, "Converted, renormalised after the drop: ")


def expanded_keeps_the_bound(results: Results) -> Finding:
    held, said = [], {}
    for factor in results.scale.factors:
        drop = results.load(bounded(OWN, factor))
        more = results.load(bounded(OWN, factor, expand="local"))
        held += [
            more["expert_after"] <= factor * _ROUNDING,
            more["device_bound"] < drop["device_bound"],
        ]
        bounds = f"{times(more['device_bound'])} / {times(drop['device_bound'])}"
        said[factor] = (
            f"{bounds}, {percent(more['extra'])} more pairs, busiest expert"
            f" {times(more['expert_after'])} the mean"
        )
    return Finding(
        "Expanded Drop keeps every expert within the factor, and gains somewhat less speed than"
        " Token Drop (Figure 4)",
        "at every factor its busiest expert is within the factor, and its bound of the devices is"
        " lower",
        "bound of the busiest of 8 devices, Expanded / Token Drop: "
        + listed(said, results.scale.few),
        mark(held),
    )


def expanded_displaces_none(results: Results) -> Finding:
    """In the first layer, where every case sees the same tokens."""
    held, said = [], {}
    for factor in results.scale.few:
        cases = (
            bounded(OWN, factor),
            bounded(OWN, factor, expand="local"),
            bounded(OWN, factor, expand="local", expand_priority="topk_first"),
        )
        kept = [results.layers(case)[0]["kept"] for case in cases]
        held.append(kept[1] == kept[0])
        said[factor] = " / ".join(percent(share) for share in kept)
    return Finding(
        "Extra candidates change nothing in experts that their top-k already fills (section 4)",
        "in layer 1, where all see the same tokens, as many top-k pairs stay as under Token Drop",
        "kept by Token Drop / Expanded Drop / Expanded Drop with top-k first: "
        + listed(said, results.scale.few),
        mark(held),
    )


def two_k_is_enough(results: Results) -> Finding:
    held, said = [], {}
    for factor in results.scale.few:
        change = results.change(_ranked(factor, 2 * TOP_K), _ranked(factor, TOP_K))
        held.append(not change.below)
        said[factor] = signed(change)
    return Finding(
        "3k candidates are no better than 2k (Table 11: 61.1 against 61.2)",
        "3k gains nothing beyond chance",
        "3k against 2k: " + listed(said, results.scale.few),
        mark(held),
    )


def _ranked(factor: float, extra: int, most: int | None = None) -> Case:
    return bounded(OWN, factor, expand="rank", extra=extra, max_experts_per_token=most)


def limit_per_token(results: Results) -> Finding:
    held, said = [], {}
    for factor in results.scale.few:
        changes = [
            results.change(_ranked(factor, extra, TOP_K), _ranked(factor, extra))
            for extra in (TOP_K, 2 * TOP_K)
        ]
        held += [change.above for change in changes]
        said[factor] = " / ".join(signed(change) for change in changes)
    return Finding(
        "At most k experts per token after the drop is slightly worse (Table 11: 61.0 against 61.2"
        " and 61.1)",
        "the limit loses, beyond chance, with 2k and with 3k candidates",
        "with against without the limit, 2k / 3k: " + listed(said, results.scale.few),
        mark(held),
    )


def device_scope(results: Results) -> Finding:
    by_device = bounded(OWN, 1.0, scope="device", expand="local")
    by_expert = bounded(OWN, 1.5, expand="local")
    change = results.change(by_device, by_expert)
    bounds = [results.load(case)["device_bound"] for case in (by_device, by_expert)]
    return Finding(
        "A bound per device at factor 1 is better and faster than one per expert at 1.5 (Table 3:"
        " 74.8 against 73.9; 1.31 against 1.23 times), both with Expanded Drop",
        "it loses less, beyond chance; its bound of the busiest device is higher",
        f"per device against per expert: {signed(change)}; bound of the busiest of 8 devices"
        f" {times(bounds[0])} against {times(bounds[1])}",
        mark([change.below, bounds[0] > bounds[1]]),
    )


def device_scope_beside_expert(results: Results) -> Finding:
    held, said = [], {}
    for factor in results.scale.factors:
        cases = bounded(OWN, factor, scope="device"), bounded(OWN, factor)
        change = results.change(*cases)
        shares = [results.dropped(case) for case in cases]
        held.append(change.below and shares[0] < shares[1])
        dropped = " and ".join(percent(share) for share in shares)
        said[factor] = f"{signed(change)}, dropped {dropped}"
    return Finding(
        "A bound per device drops fewer pairs than one per expert at the same factor (section 4)",
        "it does, and loses less, beyond chance, at every factor",
        f"{tally(held, 'do')}; per device against per expert: " + listed(said, results.scale.few),
        mark(held),
    )


def rerouting(results: Results, like: Case = OWN, title: str = "") -> Finding:
    held, said = [], {}
    for factor in results.scale.few:
        drop = bounded(like, factor)
        rounds = [bounded(like, factor, reroute_rounds=number) for number in (2, 3, 4)]
        changes = [results.change(case, drop) for case in rounds]
        held += [change.below for change in changes]
        said[factor] = " / ".join(signed(change) for change in changes)
    return Finding(
        title + "Token Reroute is better than Token Drop (version 1 of the paper; later ones leave"
        " it out, since rounds take time)",
        "2, 3 and 4 rounds lose less than Token Drop, beyond chance",
        "against Token Drop, 2 / 3 / 4 rounds: " + listed(said, results.scale.few),
        mark(held),
    )


def rerouting_converted(results: Results) -> Finding:
    return rerouting(results, CONVERTED, "Converted: ")


def better_than_dropless(results: Results) -> Finding:
    cases = [bounded(like, 1.5, expand="local") for like in (OWN, CONVERTED)]
    changes = [results.change(case, case.dropless()) for case in cases]
    return Finding(
        "A capacity can be better than none (Table 2: Mixtral with Expanded Drop at 1.5, 74.5"
        " against 74.3)",
        "the same loses less than dropless, beyond chance; in part: on one of the two models",
        f"as trained {signed(changes[0])}, converted {signed(changes[1])}",
        mark([change.below for change in changes]),
    )


def renormalising(results: Results) -> Finding:
    """Alone and beside Expanded Drop: what it costs is not the same there."""
    scale = results.scale
    changes = {
        factor: results.change(bounded(_CONVERTED_KEPT, factor), bounded(CONVERTED, factor))
        for factor in scale.factors
    }
    expanded = {
        factor: results.change(
            bounded(_CONVERTED_KEPT, factor, expand="local"),
            bounded(CONVERTED, factor, expand="local"),
        )
        for factor in scale.few
    }
    held = [change.above for change in (*changes.values(), *expanded.values())]
    said = {
        factor: f"{signed(changes[factor])} / {signed(expanded[factor])}" for factor in scale.few
    }
    return Finding(
        "Weights are not renormalised after the drop (the authors' code has it as a switch, off)",
        "renormalising loses more at every factor, beyond chance, with Token Drop and with Expanded"
        " Drop",
        f"{tally(held, 'lose more')}; converted, renormalised after the drop against before, Token"
        " Drop / Expanded Drop: " + listed(said, scale.few),
        mark(held),
    )
