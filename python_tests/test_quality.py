"""bench.quality: the quick form, its page, and marks that follow from the numbers."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from bench import quality
from bench import quality_findings_more as more
from bench.quality_findings_drop import best_by_score, expert_drop, little_is_lost, skew
from bench.quality_marks import NOT_SEEN, PARTLY, SEEN, mark
from bench.quality_results import Results
from bench.quality_run import MODEL
from bench.quality_sections import all_cases, sections
from bench.quality_settings import OWN, Case, bounded
from capmoe_kernels.demo.corpus import held_out_files

pytestmark = pytest.mark.skipif(
    not (MODEL / "model.safetensors").is_file() or not held_out_files()[0].is_file(),
    reason="needs the demo's model and the standard library's sources",
)
MARKED = "before\n<!-- begin: bench.quality -->old\n<!-- end: bench.quality -->\nafter\n"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A folder with all that the quick form writes."""
    folder = tmp_path_factory.mktemp("quality")
    (folder / "page.md").write_text(MARKED)
    files = {"--json": "q.json", "--plot": "q.png", "--markdown": "page.md"}
    options = [text for option, name in files.items() for text in (option, str(folder / name))]
    quality.main(["--quick", *options])
    return folder


@pytest.fixture
def tree(quick):
    return json.loads((quick / "q.json").read_text())


# The quick form


def test_the_quick_form_runs_everything_and_writes_its_files(quick, tree):
    cases = [Case.from_json(line["case"]) for line in tree["lines"]]
    assert cases == all_cases(quality.QUICK_SCALE)
    assert tree["text"]["window"] == 512
    assert all(len(line["nats"]) == 3 for line in tree["lines"])
    assert (quick / "q.png").read_bytes().startswith(b"\x89PNG")
    page = (quick / "page.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    for section in sections(quality.QUICK_SCALE):
        assert f"### {section.title}\n" in page


def test_a_page_of_an_earlier_run_is_the_same(quick, tmp_path):
    page = tmp_path / "again.md"
    page.write_text(MARKED)
    quality.main(["--of", str(quick / "q.json"), "--markdown", str(page)])
    assert page.read_text() == (quick / "page.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--markdown", "{}/words.md"], "words.md: must have"),
        (["--markdown", "{}/gone/page.md"], "no such folder"),
        (["--json", "{}/gone/q.json"], "no such folder"),
        (["--plot", "{}/q.jpeg"], "expected a name that ends in"),
        (["--of", "{}/gone.json"], "gone.json: No such file"),
        (["--of", "{}/words.md"], "is not what --json"),
        (["--of", "{}/other.json"], "is not what --json"),
        (["--of", "{}/old.json", "--markdown", "{}/page.md"], "lacks 1 of the settings"),
    ],
)
def test_a_wrong_file_is_one_line_before_the_work(
    tree, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.setattr(quality, "_measure", None)  # not reached
    files = {"words.md": "words\n", "other.json": '{"scale": {}}', "page.md": MARKED}
    old = {**tree, "lines": tree["lines"][:-1]}
    for name, text in {**files, "old.json": json.dumps(old)}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        quality.main([option.format(tmp_path) for option in options])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out
    assert all((tmp_path / name).read_text() == text for name, text in files.items())


def test_with_no_file_asked_for_the_page_is_printed(quick, capsys):
    quality.main(["--of", str(quick / "q.json")])
    printed = capsys.readouterr().out
    assert printed.startswith("## The run\n")
    assert printed.strip() in (quick / "page.md").read_text()


def test_a_random_line_is_the_mean_of_its_seeds(tree):
    results = Results(tree)
    case = bounded(OWN, 1.5, policy="random")
    lines = [x for x in tree["lines"] if Case.from_json(x["case"]).without_seed() == case]
    assert len(lines) == 2
    assert results.nats(case) == pytest.approx(np.mean([line["nats"] for line in lines], 0))
    assert results.seeds_spread(case) > 0
    bounds = [line["load"]["expert_bound"] for line in lines]
    assert results.load(case)["expert_bound"] == pytest.approx(np.mean(bounds))


# The marks


def planted(tree, nats=None, load=None):
    """The run with other numbers: ``nats(case, of)`` and ``load(case)`` replace some."""
    tree = copy.deepcopy(tree)
    measured = Results(copy.deepcopy(tree))
    for line in tree["lines"]:
        case = Case.from_json(line["case"])
        other = nats and nats(case.without_seed(), measured.nats)
        if other is not None:
            line["nats"] = list(other)
        for layer in (line["load"], *line["layers"]):
            layer.update((load and load(case)) or {})
    return Results(tree)


def costs(drop):
    """Every bounded case costs what ``drop(case)`` says, in nats per byte, with some noise."""
    noise = np.random.default_rng(0).normal(0, 1e-3, 3)

    def nats(case, of):
        return None if case.capacity is None else of(OWN) + 512 * (drop(case) + noise)

    return nats


@pytest.mark.parametrize(("random", "expected"), [(0.2, SEEN), (0.05, PARTLY)])
def test_the_mark_of_the_policies(tree, random, expected):
    price = {"score": 0.1, "random": random, "keep_first": 0.3, "keep_last": 0.4}
    results = planted(tree, costs(lambda case: price[case.capacity.policy]))
    assert best_by_score(results).mark == expected


def test_the_mark_of_the_policies_where_score_is_worst(tree):
    results = planted(tree, costs(lambda case: 0.1 + (case.capacity.policy == "score")))
    assert best_by_score(results).mark == NOT_SEEN


@pytest.mark.parametrize(("back", "expected"), [(0.6, SEEN), (0.2, PARTLY), (0.05, NOT_SEEN)])
def test_the_mark_of_expanded_drop(tree, back, expected):
    def drop(case):
        return 0.1 * (1 - back) if case.capacity.expand == "local" else 0.1

    # Both have the same noise in a file, as paired runs have; a little of it is their own.
    results = planted(tree, costs(drop))
    assert more.expanded_recovers(results).mark == expected


@pytest.mark.parametrize(
    ("loss", "expected"), [({1.5: 0, 2.0: 0}, SEEN), ({1.5: 1, 2.0: 0}, PARTLY)]
)
def test_the_mark_of_a_small_loss(tree, loss, expected):
    results = planted(tree, costs(lambda case: loss.get(case.factor, 1)))
    assert little_is_lost(results).mark == expected


@pytest.mark.parametrize(("peak", "expected"), [(8, SEEN), (3, PARTLY), (1.5, NOT_SEEN)])
def test_the_mark_of_the_skew(tree, peak, expected):
    assert skew(planted(tree, load=lambda case: {"expert_before": peak})).mark == expected


def test_the_marks_of_device_scope_rerouting_and_renormalising(tree):
    def drop(case):
        better = case.capacity.scope == "device" or case.capacity.reroute_rounds > 1
        return 0.1 - 0.05 * better + 0.05 * (case.renormalize == "kept")

    results = planted(tree, costs(drop))
    assert more.rerouting(results).mark == SEEN
    assert more.renormalising(results).mark == SEEN
    found = {True: SEEN, False: PARTLY}
    for faster, expected in found.items():

        def load(case, faster=faster):
            device = case.capacity is not None and case.capacity.scope == "device"
            return {"device_bound": 2.0 if device == faster else 1.5}

        assert more.device_scope(planted(tree, costs(drop), load)).mark == expected


def test_the_mark_of_expert_drop(tree):
    def nats(case, of):
        return of(OWN) + 512.0 * np.array([1.0, 1.1, 0.9]) if case.skipped else None

    assert expert_drop(planted(tree, nats)).mark == SEEN
    assert expert_drop(Results(tree)).mark == PARTLY  # this model loses little without them


@pytest.mark.parametrize(("nearest", "expected"), [(1.0, PARTLY), (2.0, SEEN)])
def test_expert_drop_is_compared_where_token_drop_drops_twelve_percent(tree, nearest, expected):
    """Leaving experts out loses 0.05; Token Drop 0.1 at factor 1, and 0.01 at factor 2."""
    bounded_ones = costs(lambda case: 0.1 if case.factor == 1 else 0.01)

    def nats(case, of):
        return of(OWN) + 512 * 0.05 if case.skipped else bounded_ones(case, of)

    def load(case):
        if case.capacity is None:
            return {"kept": 0.98 if case.skipped else 1.0, "expert_bound": 1.0}
        return {"kept": 0.88 if case.factor == nearest else 0.5}

    finding = expert_drop(planted(tree, nats, load))
    assert finding.mark == expected
    assert f"Token Drop at factor {nearest:g}; dropped 2.0 % against 12.0 %" in finding.evidence


def test_the_marks_where_expanded_drop_and_renormalising_meet(tree):
    """Renormalising costs, and not beside Expanded Drop, which wins back where it does."""

    def drop(case):
        kept, expanded = case.renormalize == "kept", case.capacity.expand == "local"
        return 0.1 + 0.05 * kept - 0.06 * (kept and expanded)

    results = planted(tree, costs(drop))
    finding = more.renormalising(results)
    assert finding.mark == PARTLY
    assert finding.evidence.startswith("3 of 4 lose more")
    assert more.expanded_recovers(results).mark == NOT_SEEN
    assert more.expanded_recovers_renormalised(results).mark in (SEEN, PARTLY)


def test_rerouting_is_marked_for_each_model(tree):
    def drop(case):
        return 0.1 - 0.05 * (case.capacity.reroute_rounds > 1 and not case.scaled)

    results = planted(tree, costs(drop))
    assert more.rerouting(results).mark == SEEN
    assert more.rerouting_converted(results).mark == NOT_SEEN


def test_marks():
    assert [mark(held) for held in ([True], [True, False], [False])] == [SEEN, PARTLY, NOT_SEEN]
