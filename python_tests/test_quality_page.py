"""docs/quality.md: its rows are those of now, its marks and sentences follow from its tables."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from bench.quality_coverage import SHAPES, coverage
from bench.quality_findings import beyond_the_paper, of_the_paper
from bench.quality_marks import NOT_SEEN, NOT_TESTABLE, PARTLY, SEEN
from bench.quality_page import PAGE
from bench.quality_results import Results
from bench.quality_sections import all_cases, sections
from bench.quality_settings import Scale
from bench.quality_words import name

TEXT = PAGE.read_text()
FEW = ("1", "1.5", "2")


def rows(title):
    """Cells of the rows below ``title``, without the header."""
    part = re.split(r"\n#{2,3} ", TEXT.split(f"# {title}\n", 1)[1])[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def changes(title):
    """{(method, factor): (bits per byte, change)} of a table."""
    return {(row[0], row[1]): (float(row[8]), float(row[9].split()[0])) for row in rows(title)[1:]}


@pytest.fixture(scope="module")
def findings():
    """Of now, on numbers that mean nothing: their claims, their rules, the words around numbers."""
    scale = Scale()
    load = {"kept": 0.9, "extra": 0.0, "orphans": 0.0, "expert_before": 3.0, "expert_after": 2.0}
    load |= {"device_before": 2.0, "expert_bound": 2.0, "device_bound": 1.5}
    lines = [
        {"case": case.as_json(), "nats": [300.0 + i, 400.0], "load": load, "layers": [load] * 4}
        for i, case in enumerate(all_cases(scale))
    ]
    files = [{"name": "a.py", "bytes": 300}, {"name": "b.py", "bytes": 300}]
    tree = {"scale": vars(scale), "text": {"files": files}, "lines": lines}
    results = Results({**tree, "weight_sums": [0.5] * 4})
    return of_the_paper(results), beyond_the_paper(results)


def shape(evidence):
    """The words and marks around the numbers, of which only the number is not of now."""
    return re.sub(r"[-+]?\d+(\.\d+)?", "#", evidence)


# The rows are those of now


def test_every_finding_has_the_claim_rule_and_evidence_of_now(findings):
    now = [[each.claim, each.rule, shape(each.evidence)] for each in findings[0]]
    page = [[claim, rule, shape(said)] for _, claim, rule, said in rows("The paper's findings")]
    assert page == now


def test_every_question_is_that_of_now(findings):
    now = [[question, shape(said)] for question, said in findings[1]]
    assert [[row[0], shape(row[1])] for row in rows("What the paper leaves open")] == now


def test_every_setting_is_in_its_table():
    for section in sections(Scale()):
        cases = dict.fromkeys(case.without_seed() for case in section.cases)
        now = [[name(case), "" if not case.factor else f"{case.factor:g}"] for case in cases]
        assert [row[:2] for row in rows(section.title)[1:]] == now


# The marks follow


def test_marks_are_counted():
    counts = Counter(row[0].strip("*") for row in rows("The paper's findings"))
    line = next(line for line in TEXT.splitlines() if re.match(r"Of \d+: ", line))
    assert (
        line
        == f"Of {sum(counts.values())}: "
        + ", ".join(f"{number} {mark}" for mark, number in counts.items())
        + "."
    )
    assert set(counts) == {SEEN, PARTLY, NOT_SEEN, NOT_TESTABLE}


def test_a_mark_agrees_with_its_tally():
    """Where a rule is that all do, which says how many did."""
    checked = 0
    for mark, _, rule, said in rows("The paper's findings"):
        tally = re.match(r"(\d+) of (\d+) ", said)
        if tally is None or "in part" in rule:
            continue
        held, of = map(int, tally.groups())
        assert mark.strip("*") == (SEEN if held == of else PARTLY if held else NOT_SEEN)
        checked += 1
    assert checked >= 6


# What stands out, in words, is true in the tables


def test_the_best_scored_tokens_matter_as_much_as_said():
    for title in ("Token Drop", "Converted: Token Drop"):
        found = changes(title)
        for policy in ("keep first", "keep last", "random"):
            for factor, more in {"1": 0.5, "2": 0.2}.items():
                assert found[policy, factor][1] - found["score", factor][1] > more


def test_expanded_drop_by_score_changes_little_where_weights_stay():
    tables = {"Expanded Drop, local": "Token Drop", "Expanded Drop, next by rank": "Token Drop"}
    tables |= {"Converted: the other methods": "Converted: Token Drop", "One rank": "One rank"}
    checked = 0
    for title, base in tables.items():
        drop = changes(base)
        for (method, factor), (bits, _) in changes(title).items():
            if method.startswith("score, + "):
                assert abs(bits - drop["score", factor][0]) < 0.01
                checked += 1
    assert checked > 40


def test_expanded_drop_wins_back_what_is_said_after_renormalising():
    found = changes("Converted: renormalised after the drop")
    back = [1 - found["score, + 8 local", factor][1] / found["score", factor][1] for factor in FEW]
    assert [round(100 * share) for share in back] == pytest.approx([8, 22, 43], abs=1)
    assert "8, 22 and 43 % at factors 1, 1.5 and 2" in TEXT


def test_renormalising_costs_where_it_is_said_to():
    before = changes("Converted: Token Drop") | changes("Converted: the other methods")
    after = changes("Converted: renormalised after the drop")
    for case, (bits, _) in after.items():
        best = case == ("score, + 8 local", "2")
        assert (bits < before[case][0]) == best
    both, neither = after["score, + 8 local", "2"][0], before["score", "2"][0]
    assert both - before["score, + 8 local", "2"][0] == pytest.approx(-0.006, abs=5e-4)
    assert both - neither == pytest.approx(-0.003, abs=5e-4)


def test_rerouting_wins_as_little_as_said():
    own = changes("Token Drop"), changes("Token Reroute")
    converted = changes("Converted: Token Drop"), changes("Converted: the other methods")
    for factor in FEW:
        for rounds in (2, 3, 4):
            case = f"{rounds} rounds"
            assert -0.01 < own[1][f"score, {case}", factor][0] - own[0]["score", factor][0] < 0
            change = converted[1][f"score, {case}", factor][0] - converted[0]["score", factor][0]
            assert abs(change) < 0.01
    (said,) = [row[3] for row in rows("The paper's findings") if "Converted: Token R" in row[1]]
    intervals = re.findall(r"\[(\S+), (\S+)\]", said)
    assert len(intervals) == 9
    assert all(float(low) <= 0 <= float(high) for low, high in intervals)


def test_intervals_cover_as_often_as_said():
    """A third of the trials: the quoted numbers, within three standard errors."""
    said = re.findall(r"(\d+\.\d) %\s+\((normal|exponential)", TEXT)
    assert [shape for _, shape in said] == ["normal", "exponential"]
    for (share, _), draw in zip(said, SHAPES.values(), strict=True):
        assert coverage(draw, 300) == pytest.approx(float(share) / 100, abs=0.055)
