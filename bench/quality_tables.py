"""The results as Markdown tables."""

from __future__ import annotations

from .quality_results import Results
from .quality_sections import Section, sections
from .quality_settings import OWN, Case, bounded
from .quality_words import name, percent, signed, table, times

_POLICIES = {
    "score": {},
    "random": {"policy": "random"},
    "keep first": {"policy": "keep_first"},
    "keep last": {"policy": "keep_last"},
    "score, Expanded (local)": {"expand": "local"},
    "score, per device": {"scope": "device"},
}
_HEADER = [
    "method",
    "factor",
    "pairs dropped",
    "extra pairs",
    "tokens without expert",
    "busiest expert / mean",
    "bound, expert",
    "bound, 8 devices",
    "bits per byte",
    "change [95 %]",
]


def overview(results: Results) -> str:
    """The change to dropless by factor, method by method."""
    body = []
    for factor in sorted(results.scale.factors, reverse=True):
        cases = [bounded(OWN, factor, **fields) for fields in _POLICIES.values()]
        changes = [signed(results.change(case, OWN)) for case in cases]
        body.append([f"{factor:g}", *changes])
    return table(["factor", *_POLICIES], body)


def layers(results: Results) -> str:
    """How uneven every layer is, and what Token Drop by score takes from it."""
    factors = [each for each in (2.0, 1.5, 1.0) if each in results.scale.factors]
    dropped = [results.layers(bounded(OWN, factor)) for factor in factors]
    header = [
        "layer",
        "busiest expert / mean",
        "busiest of 8 devices / mean",
        *(f"dropped at {factor:g}" for factor in factors),
    ]
    body = [
        [
            str(index + 1),
            times(layer["expert_before"]),
            times(layer["device_before"]),
            *(percent(1 - each[index]["kept"]) for each in dropped),
        ]
        for index, layer in enumerate(results.layers(OWN))
    ]
    return table(header, body)


def everything(results: Results) -> str:
    """A table for every section."""
    return "\n\n".join(_section(results, section) for section in sections(results.scale))


def _section(results: Results, section: Section) -> str:
    cases = dict.fromkeys(case.without_seed() for case in section.cases)
    body = [_row(results, case, section.base) for case in cases]
    return f"### {section.title}\n\n{table(_HEADER, [_base(results, section.base), *body])}"


def _base(results: Results, base: Case) -> list[str]:
    load = results.load(base)
    bits = f"{results.bits(base):.4f}"
    return ["dropless", "", "", "", "", times(load["expert_before"]), "", "", bits, ""]


def _row(results: Results, case: Case, base: Case) -> list[str]:
    load = results.load(case)
    return [
        name(case),
        "" if case.factor is None else f"{case.factor:g}",
        percent(results.dropped(case)),
        percent(load["extra"]) if load["extra"] else "",
        percent(load["orphans"]),
        times(load["expert_after"]),
        times(load["expert_bound"]),
        times(load["device_bound"]),
        f"{results.bits(case):.4f}",
        signed(results.change(case, base)),
    ]
