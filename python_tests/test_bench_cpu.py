"""bench.cpu_peers: its verdicts, its judge of answers, and every row on tiny shapes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench import cpu_peers_parts, cpu_peers_routing, cpu_peers_verdicts
from bench.cpu_peers_cases import TINY, Given, Judge, make_experts, make_inputs, truth_of
from bench.cpu_peers_child import ChildError, in_child
from bench.cpu_peers_layer import judged
from bench.cpu_peers_rivals import GROUPED_MM, LOOP, OURS, TRANSFORMERS, VLLM_VEC, ZENTORCH
from bench.cpu_peers_sampling import interleaved
from bench.cpu_peers_tables import markdown
from bench.cpu_peers_verdicts import BARS, at_least, at_most, rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
ROOT = Path(__file__).resolve().parents[1]


def cell(dtype="bf16", tokens=512, shape="mixs", flops=2e9, active_bytes=8e6, read=None, **ms):
    names = {"ours": OURS, "zentorch": ZENTORCH, "transformers": TRANSFORMERS, "loop": LOOP}
    return {
        "dtype": dtype,
        "shape": shape,
        "tokens": tokens,
        "ms": {names[name]: taken for name, taken in ms.items()},
        "wrong": {},
        "flops": flops,
        "active_bytes": active_bytes,
        "read": read,
    }


def verdicts(**results):
    return {(row.case, row.must): row for row in rows(results)}


def test_verdict_arithmetic():
    assert at_least(1.2, 1.2) == "met"
    assert at_least(0.9, 1.2) == "missed by 25.0 %"
    assert at_most(25.0, 25.0) == "met"
    assert at_most(30.0, 25.0) == "missed by 20.0 %"


def test_the_worst_cell_decides():
    cells = [
        cell(tokens=512, ours=10.0, zentorch=11.0, loop=13.0, transformers=11.4),
        cell(tokens=4096, ours=10.0, zentorch=9.0, loop=15.0, transformers=30.0),
        cell(tokens=128, ours=10.0, zentorch=1.0, loop=1.0, transformers=1.0),  # not asked about
    ]
    said = verdicts(cells=cells)
    case = "bf16, T >= 512"
    assert said[case, f">= 0.97 x {ZENTORCH}"].verdict == "missed by 7.2 %"
    assert said[case, f">= 0.97 x {ZENTORCH}"].measured == "0.90 (mixs 4096) to 1.10 (mixs 512)"
    assert said[case, f">= 1.2 x {TRANSFORMERS}"].verdict == "missed by 5.0 %"
    assert said[case, f">= 1.2 x {LOOP}"].verdict == "met"
    assert said[case, "beside the fastest other"].measured.startswith("0.90 (mixs 4096, zentorch)")


def test_who_is_absent_and_who_is_wrong_is_said():
    said = verdicts(cells=[cell(dtype="fp16", ours=10.0, loop=45.0)])
    assert said["fp16", f">= 1.3 x {VLLM_VEC}"].verdict == "not measured"
    assert said["fp16", f">= 4 x {LOOP}"].verdict == "met"
    wrong = verdicts(cells=[cell(dtype="fp16", loop=45.0)])
    assert wrong["fp16", f">= 4 x {LOOP}"].verdict == "missed"
    assert {bar.dtype for bar in BARS} == {"bf16", "fp32", "fp16"}


def test_shares_of_what_the_core_can_do():
    large = cell(tokens=4096, ours=10.0, flops=2e9)  # 200 GFLOP/s
    small = cell(tokens=1, ours=1.0, active_bytes=8e6, read=1e10)  # 8 GB/s of 10
    peaks = {"fma_fp32": 1e12, "dot_bf16": 1e11, "tile_bf16": 4e11}
    said = verdicts(cells=[large, small], peaks=peaks)
    assert said["bf16, T = 4096", ">= 90% of tile_bf16, 400 GFLOP/s"].verdict == "missed by 44.4 %"
    assert said["bf16, T = 4096", "dot_bf16, 100 GFLOP/s"].measured == "2.00 (mixs 4096)"
    band = said["bf16, T <= 32", ">= 85% of the read bandwidth"]
    assert (band.measured, band.verdict) == ("0.80 (mixs 1)", "missed by 5.9 %")


def test_the_other_rows():
    where = {"shape": "olmoe", "tokens": 4096}
    names = (cpu_peers_parts.DROPLESS, cpu_peers_parts.TOKEN_DROP, cpu_peers_parts.EXPANDED_DROP)
    capacity = {
        **where,
        "ms": dict(zip(names, (100.0, 70.0, 80.0), strict=True)),
        "kept": dict(zip(names, (1.0, 0.6, 0.8), strict=True)),
    }
    said = verdicts(
        routing={"ms": {OURS: 1.5, "DeepSpeed": 6.0}, "wrong": {}},
        capacity=capacity,
        threads=[
            {**where, "ms": {"one": 18.5, "two": 10.0}},
            {**where, "tokens": 32, "ms": {"one": 9.0, "two": 5.0}},
        ],
        call={"us": {OURS: 20.0, LOOP: 90.0}, "wrong": {}},
        memory={
            **where,
            "moe": 3e8,
            "moe_allowed": 2e8,
            "pack_beyond_result": 0,
            "pack_allowed": 1,
        },
    )
    by_case = {}
    for (case, _), row in said.items():
        by_case.setdefault(case.split(",")[0], []).append(row.verdict)
    assert by_case == {
        "gate + select + slots": ["missed by 25.0 %", "met"],
        "Token Drop": ["missed by 5.0 points"],
        "Expanded Drop": ["-"],
        "two threads": ["missed by 2.7 %"],
        "call at T = 1": ["met"],
        "extra memory of moe": ["missed by 50.0 %"],
        "memory of pack beyond its result": ["met"],
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_judge_sees_one_bad_row(dtype):
    torch.manual_seed(0)
    experts = make_experts(TINY, dtype)
    given = Given(*make_inputs(TINY, dtype, 64), experts, TINY.top_k)
    judge = Judge(given, truth_of(given))
    right = given.loop()
    assert judge.complaint(right, 2) is None
    for token, spoil in ((0, 1.05), (63, 1.05), (63, float("nan"))):
        bad = right.clone()
        bad[token] *= spoil
        assert judge.complaint(bad, 2) is not None, (token, spoil)


def test_only_right_answers_are_timed():
    torch.manual_seed(0)
    experts = make_experts(TINY, torch.float32)
    given = Given(*make_inputs(TINY, torch.float32, 64), experts, TINY.top_k)

    def refuses(_):
        raise ValueError("not this type\nand a trace")

    runs = {
        OURS: lambda given: given.loop() * (1 + 4e-6),
        ZENTORCH: lambda given: given.loop() * (1 + 4e-6),  # others may err more
        LOOP: lambda given: given.loop(),
        GROUPED_MM: refuses,
    }
    wrong, errors, calls = judged(runs, given, Judge(given, truth_of(given)))
    assert set(wrong) == {OURS, GROUPED_MM}
    assert wrong[GROUPED_MM] == "not this type"
    assert set(calls) == {ZENTORCH, LOOP}
    assert errors[LOOP] < errors[OURS]


def test_the_judge_of_gates_sees_one_wrong_pair():
    torch.manual_seed(0)
    logits = (
        torch.randn(cpu_peers_routing.TOKENS, cpu_peers_routing.EXPERTS) + torch.arange(64) / 32
    )
    right = cpu_peers_routing.expected(logits)
    routing = cpu_peers_routing.ours(logits)()
    assert (routing.rows < 0).any(), "capacity does not bind"
    assert cpu_peers_routing.complaint(OURS, routing, right) is None
    routing.rows[(routing.rows >= 0).nonzero()[100].unbind()] = -1
    said = cpu_peers_routing.complaint(OURS, routing, right)
    assert said == "1 pairs kept or dropped wrongly"


def test_a_child_answers_fails_or_dies():
    assert in_child(lambda: {"cells": [1.5]}) == {"cells": [1.5]}
    with pytest.raises(RuntimeError, match="KeyError: 'no'"):
        in_child(lambda: {}["no"])
    with pytest.raises(ChildError, match="SIGKILL"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_samples_take_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}
    times, rounds = interleaved(calls, 0.0, least=3, before=lambda name: turns.append(f"-{name}"))
    assert turns == ["-a", "a", "-b", "b"] * 3
    assert rounds == 3
    assert set(times) == {"a", "b"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells")
def test_the_peak_of_memory_is_seen():
    size = 2**27
    _, peak, kept = cpu_peers_parts._peak(lambda: torch.ones(size // 4).sum())
    assert 0.9 * size < peak < 1.5 * size
    assert kept < 0.5 * size


def test_every_row_on_tiny_experts(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "bench.cpu_peers", "--dtype", "fp32", "--shape", "tiny"]
    command += ["--tokens", "1", "64", "--seconds", "0.02", "--json", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(out.read_text())
    assert [(c["dtype"], c["tokens"]) for c in results["cells"]] == [("fp32", 1), ("fp32", 64)]
    installed = {OURS, LOOP, GROUPED_MM} | ({TRANSFORMERS} if find_spec("transformers") else set())
    for entry in results["cells"]:
        assert installed <= set(entry["ms"]), entry["wrong"]
        assert min(entry["ms"].values()) > 0
    assert results["routing"]["ms"][OURS] > 0
    assert results["call"]["us"][OURS] > 0
    kept = results["capacity"]["kept"]
    token_drop, expanded = kept[cpu_peers_parts.TOKEN_DROP], kept[cpu_peers_parts.EXPANDED_DROP]
    assert token_drop < expanded <= kept[cpu_peers_parts.DROPLESS] == 1
    cases = [row.case.split(",")[0] for row in cpu_peers_verdicts.rows(results)]
    assert {"fp32", "two threads", "gate + select + slots", "Token Drop"} <= set(cases)
    assert "| verdict |" in run.stdout
    assert markdown(results) == run.stdout.removesuffix("\n")
