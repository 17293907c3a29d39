"""The tables of ``bench.quality``, and so everything that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .quality_settings import (
    CONVERTED,
    OWN,
    PLAIN,
    SKIPPED,
    TOP_K,
    Case,
    Scale,
    bounded,
)

_SEED_STEP = 10_000  # every layer and rank takes a seed of its own from here on
_OWN_KEPT = replace(OWN, renormalize="kept")
_CONVERTED_KEPT = replace(CONVERTED, renormalize="kept")


@dataclass(frozen=True)
class Section:
    """Lines of one table, whose changes are against ``base``."""

    title: str
    base: Case
    cases: list[Case]


def sections(scale: Scale) -> list[Section]:
    """In the page's order."""
    few = scale.few
    return [
        Section("Token Drop", OWN, list(_token_drop(scale, OWN, scale.factors))),
        Section("Expanded Drop, local", OWN, list(_local(scale))),
        Section("Expanded Drop, next by rank", OWN, list(_rank(scale))),
        Section("Device scope", OWN, list(_device(OWN, scale.factors, few))),
        Section("Token Reroute", OWN, list(_reroute(OWN, few))),
        Section("Expert Drop", OWN, [replace(OWN, skipped=SKIPPED)]),
        Section("Renormalised after the drop", OWN, list(_score(_OWN_KEPT, few, few))),
        Section("One rank", OWN, list(_one_rank(scale))),
        Section("Renormalised only", PLAIN, list(_score(PLAIN, few, ()))),
        Section("Converted: Token Drop", CONVERTED, list(_token_drop(scale, CONVERTED, few))),
        Section("Converted: the other methods", CONVERTED, list(_converted(scale))),
        Section(
            "Converted: renormalised after the drop",
            CONVERTED,
            list(_score(_CONVERTED_KEPT, scale.factors, few)),
        ),
    ]


def all_cases(scale: Scale) -> list[Case]:
    """Each once; those that are dropless first, and the model's own before all."""
    tables = sections(scale)
    bases = [section.base for section in tables]
    return list(dict.fromkeys([*bases, *(case for each in tables for case in each.cases)]))


def _score(like: Case, factors: tuple[float, ...], expanded: tuple[float, ...]) -> Iterator[Case]:
    for factor in factors:
        yield bounded(like, factor)
    for factor in expanded:
        yield bounded(like, factor, expand="local")


def _token_drop(scale: Scale, like: Case, others: tuple[float, ...]) -> Iterator[Case]:
    """By score at all factors; by anything else at ``others``."""
    for factor in scale.factors:
        yield bounded(like, factor)
    for policy in ("keep_first", "keep_last"):
        for factor in others:
            yield bounded(like, factor, policy=policy)
    for factor in others:
        for seed in scale.seeds:
            yield bounded(like, factor, policy="random", seed=seed * _SEED_STEP)


def _local(scale: Scale) -> Iterator[Case]:
    for factor in scale.factors:
        yield bounded(OWN, factor, expand="local")
    for factor in scale.few:
        yield bounded(OWN, factor, expand="local", expand_priority="topk_first")
    for factor in scale.few:
        yield bounded(OWN, factor, expand="local", max_experts_per_token=TOP_K)
    for policy in ("keep_first", "keep_last", "random"):
        yield bounded(OWN, scale.few[0], expand="local", policy=policy)


def _rank(scale: Scale) -> Iterator[Case]:
    for extra in (1, 2, TOP_K, 2 * TOP_K):
        for factor in scale.factors if extra == TOP_K else scale.few:
            yield bounded(OWN, factor, expand="rank", extra=extra)
    for factor in scale.few:
        yield bounded(OWN, factor, expand="rank", extra=TOP_K, expand_priority="topk_first")
    for extra in (TOP_K, 2 * TOP_K):
        for factor in scale.few:
            yield bounded(OWN, factor, expand="rank", extra=extra, max_experts_per_token=TOP_K)


def _device(like: Case, factors: tuple[float, ...], few: tuple[float, ...]) -> Iterator[Case]:
    for factor in factors:
        yield bounded(like, factor, scope="device")
    for factor in few:
        yield bounded(like, factor, scope="device", expand="local")


def _reroute(like: Case, factors: tuple[float, ...]) -> Iterator[Case]:
    for rounds in (2, 3, 4):
        for factor in factors:
            yield bounded(like, factor, reroute_rounds=rounds)


def _one_rank(scale: Scale) -> Iterator[Case]:
    one = replace(OWN, ranks=1)
    yield from _score(one, scale.factors, scale.few)
    for factor in scale.few:
        yield bounded(one, factor, policy="keep_first")
    for factor in scale.few:
        yield bounded(one, factor, scope="device")


def _converted(scale: Scale) -> Iterator[Case]:
    for factor in scale.factors:
        yield bounded(CONVERTED, factor, drop_score="weight")
    for factor in scale.factors:
        yield bounded(CONVERTED, factor, expand="local")
    for factor in scale.few:
        yield bounded(CONVERTED, factor, expand="local", expand_priority="topk_first")
    for factor in scale.few:
        yield bounded(CONVERTED, factor, expand="rank", extra=TOP_K)
    yield from _device(CONVERTED, scale.few, scale.few)
    yield from _reroute(CONVERTED, scale.few)
    yield replace(CONVERTED, skipped=SKIPPED)
