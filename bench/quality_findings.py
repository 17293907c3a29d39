"""All findings, the paper's and our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import quality_findings_drop as drop
from . import quality_findings_more as more
from .quality_marks import NOT_TESTABLE, Finding, listed
from .quality_results import Results
from .quality_settings import CONVERTED, OWN, PLAIN, bounded
from .quality_words import percent, signed

_OF_THE_PAPER: tuple[Callable[[Results], Finding], ...] = (
    drop.skew,
    drop.best_by_score,
    drop.random_beats_position,
    drop.first_is_like_last,
    drop.little_is_lost,
    drop.loss_falls_with_factor,
    drop.small_share_large_gain,
    drop.devices_average,
    drop.expert_drop,
    more.expanded_recovers,
    more.expanded_keeps_the_bound,
    more.expanded_displaces_none,
    more.two_k_is_enough,
    more.limit_per_token,
    more.device_scope,
    more.device_scope_beside_expert,
    more.rerouting,
    more.better_than_dropless,
    more.renormalising,
    drop.best_by_score_converted,
    more.expanded_recovers_converted,
    more.expanded_recovers_renormalised,
    more.rerouting_converted,
)
_UNTESTABLE = {
    "Accuracy on tasks, few-shot and generated (Tables 1, 2, 7, 11), and long contexts (Table 6)": (
        "a byte-level model of 4.3 M parameters solves none of them; bits per byte stand in"
    ),
    "Layers 1.1 to 2.6 and models 1.1 to 1.9 times faster (Figures 4 and 5, Table 10)": (
        "needs several GPUs; here are bounds. docs/straggler.md has step times of two processes"
    ),
    "Text and image tokens dropped in different order (Tables 4 and 9)": "a model of text",
    "Candidates of other devices cost communication (Figure 6)": (
        "one process; of quality, the table of Expanded Drop by rank has both"
    ),
}


def of_the_paper(results: Results) -> list[Finding]:
    return [
        *(find(results) for find in _OF_THE_PAPER),
        *(Finding(claim, "", why, NOT_TESTABLE) for claim, why in _UNTESTABLE.items()),
    ]


def beyond_the_paper(results: Results) -> list[tuple[str, str]]:
    """Questions that the paper leaves open, with what was found."""
    return [
        ("What ranking by weight instead of probability changes, converted", _by_weight(results)),
        (
            "What it costs that each of 8 ranks bounds its own tokens",
            _one(results),
        ),
        ("What an extra local candidate does under the other policies", _policies(results)),
        ("What renormalising after the drop does to the model as trained", _own_kept(results)),
        (
            "What Expanded Drop wins back of it, of the loss beyond the gate's",
            _own_kept_expanded(results),
        ),
        (
            "What renormalising after the drop and Expanded Drop do together, converted",
            _together(results),
        ),
        ("What the conversion itself costs, dropless", _conversion(results)),
    ]


def _by_weight(results: Results) -> str:
    return "by weight against by probability: " + listed(
        {
            factor: signed(
                results.change(
                    bounded(CONVERTED, factor, drop_score="weight"), bounded(CONVERTED, factor)
                )
            )
            for factor in results.scale.factors
        },
        results.scale.factors,
    )


def _one(results: Results) -> str:
    said = {}
    for factor in results.scale.factors:
        cases = bounded(OWN, factor), bounded(replace(OWN, ranks=1), factor)
        dropped = " and ".join(percent(results.dropped(case)) for case in cases)
        said[factor] = f"{signed(results.change(*cases))}, dropped {dropped}"
    return "8 ranks against 1: " + listed(said, results.scale.factors)


def _policies(results: Results) -> str:
    factor = results.scale.few[0]
    said = []
    for policy in ("keep_first", "keep_last", "random"):
        expanded = bounded(OWN, factor, policy=policy, expand="local")
        change = results.change(expanded, bounded(OWN, factor, policy=policy))
        said.append(f"{policy} {signed(change)}")
    return f"Expanded against Token Drop at factor {factor:g}: " + ", ".join(said)


def _own_kept(results: Results) -> str:
    kept = replace(OWN, renormalize="kept")
    said = {}
    for factor in results.scale.few:
        changes = [
            results.change(bounded(kept, factor), base) for base in (bounded(OWN, factor), PLAIN)
        ]
        said[factor] = " / ".join(signed(change) for change in changes)
    return "against not doing so / against dropless with weights that sum to one: " + listed(
        said, results.scale.few
    )


def _own_kept_expanded(results: Results) -> str:
    kept = replace(OWN, renormalize="kept")
    said = {}
    for factor in results.scale.few:
        drop = bounded(kept, factor)
        gain = results.change(bounded(kept, factor, expand="local"), drop)
        loss = results.change(drop, kept.dropless()).value
        said[factor] = f"{signed(gain)}, {percent(-gain.value / loss)} of the loss back"
    return "Expanded against Token Drop, both renormalised after the drop: " + listed(
        said, results.scale.few
    )


def _together(results: Results) -> str:
    kept = replace(CONVERTED, renormalize="kept")
    said = {}
    for factor in results.scale.few:
        both = bounded(kept, factor, expand="local")
        said[factor] = signed(results.change(both, bounded(CONVERTED, factor)))
    return "both against neither (Token Drop): " + listed(said, results.scale.few)


def _conversion(results: Results) -> str:
    sums = ", ".join(f"{each:.2f}" for each in results.tree["weight_sums"])
    return (
        f"weights that sum to one {signed(results.change(PLAIN, OWN))}; with each layer's experts"
        f" scaled by what its weights summed to before ({sums})"
        f" {signed(results.change(CONVERTED, OWN))}"
    )
