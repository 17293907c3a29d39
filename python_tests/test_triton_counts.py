"""What Triton's kernels execute beside the hand-written ones, against the table in bench/."""

from __future__ import annotations

import json

import pytest

from bench import triton_counts
from bench.gpu_counts import LEFT_OUT, TOKENS, key, parts
from bench.gpu_roofline import SHAPES
from bench.triton_counts import OPS, ratio, regressions, shown, summary
from cuda_on_cpu.runtime import operators as cuda
from cuda_on_cpu.runtime import triton_operators as triton

COUNTED = [("olmoe", 1), ("olmoe", 64), ("mixtral", 1024), ("qwen3", 64), ("dsv3", 64)]
# How many times the hand-written kernels' instructions, and sectors, Triton's may need, from 64
# tokens on. Fewer are no load for a GPU: there launches count.
MOST = {
    "gate": (0.9, 1.6),
    "select": (11.0, 8.0),
    "route": (5.6, 4.9),
    "dispatch": (1.95, 1.01),
    "grouped_mlp": (1.45, 1.2),
    "combine": (2.15, 1.08),
}


def rows():
    return json.loads(triton_counts.TABLE.read_text())["rows"]


def too_much(row, op):
    """The kinds of which Triton needs more than MOST."""
    kinds = zip(("ptx", "sectors"), MOST[op], strict=True)
    return [kind for kind, most in kinds if ratio(row, kind) > most]


@pytest.mark.parametrize(("model", "tokens"), COUNTED)
def test_nothing_needs_more_than_the_table_says(model, tokens):
    for reason in (triton.why_absent(), cuda.why_absent()):
        if reason is not None:
            pytest.skip(reason)
    from triton import __version__ as version

    written = json.loads(triton_counts.TABLE.read_text())["triton"]
    if written != version:
        pytest.skip(f"the table is of Triton {written}")
    from bench.triton_count import count_rows

    now = count_rows(model, tokens)
    assert now.keys() == {name for name in rows() if parts(name)[:2] == (model, tokens)}
    assert regressions(rows(), now) == []
    for name, row in now.items():
        op = parts(name)[2]
        if op != "layer" and tokens > 1:
            assert not too_much(row, op), name


def test_the_table_is_whole():
    """Every model at every number of tokens, but for what does not fit."""
    expected = {
        key(model, tokens, op, factor)
        for model in SHAPES
        for tokens in TOKENS
        for op in OPS
        for factor in ((None, 1.0) if op in ("select", "route", "layer") else (None,))
        if (model, tokens, op) not in LEFT_OUT
    }
    assert rows().keys() == expected


def test_how_far_triton_is_behind():
    for name, row in rows().items():
        _, tokens, op, _ = parts(name)
        assert row["launches"][0] == {"route": 2, "grouped_mlp": 2, "layer": 5}.get(op, 1), name
        if op != "layer" and tokens > 1:
            assert not too_much(row, op), name


def test_what_got_worse_is_said():
    name = key("olmoe", 64, "gate", None)
    row = {"launches": [1, 1], "ptx": [100, 200], "bytes": [64, 64], "sectors": [50, 40]}
    table = {name: row}
    assert regressions(table, table) == []
    assert regressions(table, {name: row | {"ptx": [102, 300]}}) == []
    (complaint,) = regressions(table, {name: row | {"ptx": [103, 200]}})
    assert "ptx 103, was 100" in complaint
    (complaint,) = regressions(table, {name: row | {"launches": [2, 1]}})
    assert "launches" in complaint
    assert too_much(row, "gate") == []
    assert too_much(row | {"sectors": [65, 40]}, "gate") == ["sectors"]
    assert too_much(row | {"ptx": [181, 200]}, "gate") == ["ptx"]


def test_the_summary_is_the_table():
    assert shown([0.52, 1.0]) == "0.5 - 1.0"
    assert shown([1.04, 1.01]) == "1.0"
    assert shown([1.2, 1.56]) == "**1.2 - 1.6**"
    lines = summary(rows())
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {op}" for op in OPS[:-1]]
    cells = lines[2].split(" | ")
    gates = [ratio(rows()[key(model, 1, "gate", None)], "ptx") for model in SHAPES]
    assert cells[1] == shown(gates)
