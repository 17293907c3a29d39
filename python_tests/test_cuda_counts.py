"""What the CUDA kernels execute against the table in bench/, and the targets it is judged by."""

from __future__ import annotations

import json

import pytest

from bench import gpu_counts, gpu_static
from bench.gpu_counts import key, missed, parts, regressions
from bench.gpu_roofline import SHAPES
from cuda_on_cpu.runtime import operators as emulated

COUNTED = [(model, tokens) for model in ("olmoe", "mixtral", "qwen3") for tokens in (1, 64)]


@pytest.mark.parametrize(("model", "tokens"), COUNTED)
def test_nothing_needs_more_than_the_table_says(model, tokens):
    reason = emulated.why_absent()
    if reason is not None:
        pytest.skip(reason)
    table = json.loads(gpu_counts.TABLE.read_text())
    if table["nvcc"] != gpu_static.nvcc_release():
        pytest.skip(f"the table is of nvcc {table['nvcc']}")
    from bench.gpu_count import count_rows

    now = count_rows(model, tokens)
    assert now.keys() == {name for name in table["rows"] if parts(name)[:2] == (model, tokens)}
    assert regressions(table["rows"], now) == []


def test_the_table_is_whole():
    """Every model at every number of tokens, but for what does not fit."""
    rows = json.loads(gpu_counts.TABLE.read_text())["rows"]
    for model in SHAPES:
        for tokens in gpu_counts.TOKENS:
            ops = {parts(name)[2] for name in rows if parts(name)[:2] == (model, tokens)}
            assert ops >= {"gate", "mark+select", "grouped_mlp"}
            assert "route" in ops or "select" in ops
            for op in ("dispatch", "combine"):
                assert (op in ops) != ((model, tokens, op) in gpu_counts.LEFT_OUT)


def test_what_got_worse_is_said():
    name = key("olmoe", 64, "gate", None)
    table = {name: {"per": "token", "ptx": 100.0, "sass": 110.0, "sectors": 1.2}}
    assert parts(name) == ("olmoe", 64, "gate", None)
    assert parts(key("dsv3", 4096, "select", 1.0)) == ("dsv3", 4096, "select", 1.0)
    assert regressions(table, {name: table[name] | {"ptx": 101.0}}) == []
    (complaint,) = regressions(table, {name: table[name] | {"ptx": 103.0}})
    assert "ptx 103.00, was 100.00" in complaint
    (complaint,) = regressions(table, {name: table[name] | {"sectors": 1.3}})
    assert "sectors" in complaint
    assert missed(table) == []
    (complaint,) = missed({name: table[name] | {"sass": 301.0}})
    assert "301.0 instructions, not 300" in complaint
