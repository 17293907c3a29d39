"""bench.expert_parallel: every case and setting on tiny sizes, and the arithmetic of its tables."""

from __future__ import annotations

import json
import re

import pytest
import torch

from bench import expert_parallel
from bench.expert_parallel_cases import SETTINGS, log_normal, normal_quantiles
from bench.expert_parallel_layers import PHASES
from bench.expert_parallel_tables import results


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Its output and its JSON."""
    out = tmp_path_factory.mktemp("bench") / "out.json"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words: lines.append(" ".join(map(str, words))))
        expert_parallel.main(["--small", "--tokens", "32", "--seconds", "0.02", "--json", str(out)])
    return "\n".join(lines), json.loads(out.read_text())


def test_every_setting_of_every_case_is_right_and_timed(printed):
    """Wrong answers end the ranks before anything is timed."""
    text, tree = printed
    assert len(tree["cases"]) == 3
    for case in tree["cases"]:
        assert case["case"] in text
        assert [line["setting"] for line in case["lines"]] == [each.name for each in SETTINGS]
        assert case["lines"][0]["speed"] == 1.0
        for line in case["lines"]:
            assert line["seconds"] > 0
            assert line["samples"] >= 3
            assert 0 <= line["error"] <= 0.02
            assert set(line["phases"]) == set(PHASES)
            assert line["wire_sent"] >= line["wire_live"]
            if "counted" in line["setting"]:
                assert line["wire_sent"] == line["wire_live"]
            assert (line["model"] is None) == (line["setting"] == "MoEShard")
        dropped = [line["dropped"] for line in case["lines"] if "Token" in line["setting"]][:3]
        assert dropped == sorted(dropped)
        assert dropped[-1] > 0
    assert len(re.findall(r"^\| MoEShard \|", text, re.MULTILINE)) == 6


def test_log_normal_case_is_skewed_across_groups_and_repeats():
    sizes = (8, 2, 16, 16)
    even, skewed = (log_normal(2, 256, skew, sizes) for skew in (0.0, 1.5))
    first = [case.router_logits.topk(2).indices.lt(4).float().mean() for case in (even, skewed)]
    assert first[0] == pytest.approx(0.5, abs=0.05)
    assert first[1] > 0.7
    assert torch.equal(skewed.router_logits, log_normal(2, 256, 1.5, sizes).router_logits)


def test_normal_quantiles():
    assert normal_quantiles(2).tolist() == pytest.approx([-0.67449, 0.67449], abs=1e-5)
    assert normal_quantiles(1).tolist() == [0.0]


def test_table_by_hand():
    """Rank 1 takes 3 s where rank 0 takes 2, in the median sample; the bound is 12 over 8 rows."""
    names = [setting.name for setting in SETTINGS]

    def rank(loads, step, phase):
        seconds = {name: [{"step": step}] * 3 for name in names}
        seconds["Token Drop 1"] = [{"step": step / 2}] * 3
        phases = {name: [dict.fromkeys(PHASES, phase)] for name in names}
        costs = {"tile": 0.1, "fixed": 0.5, "rows_per_tile": 1}
        return {
            "case": "by hand",
            "tokens": 8,
            "loads": loads,
            "costs": costs,
            "errors": dict.fromkeys(names, 0.001),
            "steps": seconds,
            "phases": phases,
            "sent": dict.fromkeys(names),
        }

    found = results((rank([6, 2], 2.0, 0.25), rank([6, 2], 3.0, 0.125)))
    lines = {line["setting"]: line for line in found["lines"]}
    drop = lines["Token Drop 1"]
    # C = 4 of each rank's 8 pairs: 12 rows of rank 0's expert become 8.
    assert (drop["bound"], drop["speed"], drop["dropped"]) == (1.5, 2.0, 0.25)
    assert lines["dropless"]["seconds"] == 3.0
    assert lines["dropless"]["model"] == pytest.approx(0.5 + 12 * 0.1)
    assert drop["model"] == pytest.approx(0.5 + 8 * 0.1)
    assert drop["phases"]["experts"] == 0.25
    assert lines["MoEShard"]["bound"] == 12 / 8
    (cells,) = (cells for cells in found["table"] if cells[0] == "Token Drop 1")
    assert cells == ["Token Drop 1", "25.0", "1.00", "1500.00", "2.00", "1.50", "1300.00", "0.87"]
