"""``capmoe bench``: what is timed, what is not, and what is said of both."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

import capmoe_kernels as cm
from capmoe_kernels.benchmark import cold, contenders, memory, run
from capmoe_kernels.benchmark.contenders import Contender, has_packed
from capmoe_kernels.benchmark.models import Preset, Shape
from capmoe_kernels.benchmark.request import Request
from capmoe_kernels.benchmark.run import run_bench
from capmoe_kernels.cli import needs, show_bench
from capmoe_kernels.cli.app import app

SIZES = ["--hidden-size", "32", "--intermediate-size", "24", "--num-experts", "8", "--top-k", "2"]
LAYER = Preset(Shape(32, 24, 8, 2), cm.Gating(2))
FACTORS = (1.0, 0.5)


@pytest.fixture(autouse=True, scope="module")
def _small():
    """No large read before a sample, and the process keeps its memory as pytest has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show_bench, "keep_freed_memory", lambda: None)
        patch.setattr(cold, "FILLER_BYTES", 4096)
        yield


def capmoe(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def bench(*keys, tokens=(64,), **options):
    """The only cell of a run of the library's."""
    options = {"factors": FACTORS, "dtype": "fp32", "seconds": 0.0, **options}
    return run_bench(Request("tiny", LAYER, tokens, keys=keys, **options)).cells[0]


@pytest.fixture(scope="module")
def ran(_small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    out, picture = folder / "out.json", folder / "out.png"
    options = ["--tokens", "64,1", "--capacity-factor", "0.5,1", "--seconds", "0", "--skew", "1"]
    result = capmoe(*SIZES, *options, "--dtype", "fp32", "--json", out, "--plot", picture)
    assert result.exit_code == 0, result.output
    return result, json.loads(out.read_text()), picture


NAMES = [
    "dense MLP of the same FLOPs",
    "every expert for every token",
    "loop of F.linear",
    "Transformers, eager",
    "Transformers, grouped_mm",
    "capmoe",
    "capmoe, packed",
]


def test_json_has_every_row_and_what_it_takes_to_repeat_it(ran):
    _, tree, _ = ran
    assert {"schema", "command", "date", "versions", "machine", "backends", "clock"} <= set(tree)
    assert tree["clock"] == "CPU time of one thread"
    assert tree["layer"] == {
        "name": "your sizes",
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_experts": 8,
        "top_k": 2,
        "scoring": "softmax",
        "renormalize": "none",
    }
    assert tree["options"]["skew"] == 1.0
    assert len(tree["load_average"]) == 2
    assert [cell["tokens"] for cell in tree["cells"]] == [1, 64]
    packed = "packed, " if has_packed(torch.device("cpu")) else ""
    for cell in tree["cells"]:
        names = [result["name"] for result in cell["results"]]
        assert names == [*NAMES, f"capmoe, {packed}capacity 1", f"capmoe, {packed}capacity 0.5"]
        assert sum(cell["demand_per_expert"]) == 2 * cell["tokens"]
        for result in cell["results"]:
            if result["not_timed"] is None:
                assert 0 < result["ms_low"] <= result["ms"] <= result["ms_high"]
                assert result["samples"] >= 3
                assert result["error"] < 1e-5


def test_rows_work_and_the_busiest_expert(ran):
    """With capacity the work shrinks: as much as a count by hand says, before and after."""
    _, tree, _ = ran
    cell = tree["cells"][1]
    demand = cell["demand_per_expert"]
    rows = {result["name"]: result for result in cell["results"]}
    assert cell["busiest"] == max(demand) / 16
    assert rows["loop of F.linear"]["rows"] == rows["capmoe"]["rows"] == 128
    assert rows["every expert for every token"]["rows"] == 512
    assert rows["every expert for every token"]["work"] == 4.0
    assert rows["dense MLP of the same FLOPs"]["rows"] is None
    for result, limit in zip(cell["results"][-2:], (16, 8), strict=True):
        kept = [min(each, limit) for each in demand]
        assert max(demand) > limit
        assert result["rows"] == sum(kept)
        assert result["work"] == sum(kept) / 128
        assert result["busiest"] == limit / 16
    loop = rows["loop of F.linear"]["ms"]
    for result in cell["results"]:
        assert result["ms"] is None or result["speed"] == pytest.approx(loop / result["ms"])


def test_table_shows_the_json_s_numbers(ran):
    result, tree, _ = ran
    assert result.stderr == ""
    rows = [(cell, row) for cell in tree["cells"] for row in cell["results"]]
    head, *_ = [i for i, line in enumerate(result.stdout.splitlines()) if "layer by" in line]
    lines = result.stdout.splitlines()[head + 1 :][: len(rows)]
    for line, (cell, row) in zip(lines, rows, strict=True):
        assert row["name"] in line
        if row["ms"] is None:
            assert f"not timed: {row['name']}" in result.stdout
            continue
        for shown in (f"{row['ms']:.3f}", f"{row['speed']:.2f}x", f"{row['work']:.2f}"):
            assert shown in line
        if row["busiest"] is not None:
            assert f"{cell['busiest']:.2f} → {row['busiest']:.2f}" in line
    assert "skew 1, seed 0" in result.stdout


def test_plot_is_a_picture(ran):
    from matplotlib.image import imread

    pixels = imread(ran[2])
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, pixels.shape[2])}) > 10


def wrong_answers():
    """What is not the layer, or only nearly."""

    def one_row(case):
        out = case.loop()
        out[-1] *= 1.001
        return out

    def raises(case):
        raise ValueError("not this type\nand a trace")

    first = cm.Capacity(factor=1.0, policy="keep_first")
    return {
        "one row": (one_row, None, "off the loop in some row"),
        "nan": (lambda case: case.loop() * float("nan"), None, "error nan"),
        "shape": (lambda case: case.loop()[:-1], None, r"shape \[63, 32\], not \[64, 32\]"),
        "raises": (raises, None, "^not this type$"),
        "unbounded": (lambda case: case.loop(), 1.0, "wrong answer"),
        "others kept": (
            lambda case: cm.moe(case.x, case.logits, case.experts, case.gating, first),
            1.0,
            "wrong answer",
        ),
    }


@pytest.mark.parametrize("name", wrong_answers())
def test_a_wrong_answer_is_reported_and_not_timed(monkeypatch, name):
    answer, factor, why = wrong_answers()[name]
    calls = []

    def prepare(weights):
        return lambda case: calls.append(case) or answer(case)

    wrong = Contender("wrong", "wrong", prepare, factor=factor)
    listed = contenders.contenders
    monkeypatch.setattr(run, "contenders", lambda *arguments: [*listed(*arguments), wrong])
    *right, found = bench("plain", "capacity").results
    assert all(each.median is not None for each in right)
    assert len(right) == 2 + len(FACTORS)
    assert len(calls) == 1
    assert found.samples == ()
    assert re.search(why, found.reason), found.reason


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_ours_are_timed_in_every_type(dtype):
    cell = bench("dense", "all-experts", "plain", "packed", "capacity", tokens=(33,), dtype=dtype)
    reasons = [each.reason for each in cell.results if "packed layout" not in (each.reason or "")]
    assert reasons == [None] * len(reasons)


def test_without_transformers_its_rows_say_so(monkeypatch):
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    result = capmoe(*SIZES, "--tokens", "64", "--seconds", "0", "--dtype", "fp32")
    assert result.exit_code == 0, result.output
    assert (
        "not timed: Transformers, eager; Transformers, grouped_mm: transformers is not installed"
        in " ".join(result.stdout.split())
    )


def test_matplotlib_is_needed_for_a_plot_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name == "matplotlib" else name)
    few = ["--tokens", "64", "--seconds", "0", "--contenders", "plain"]
    assert capmoe(*SIZES, *few).exit_code == 0
    result = capmoe(*SIZES, *few, "--plot", tmp_path / "o.png")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "matplotlib is not installed" in result.stderr


def test_what_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 6 * 10**8)
    monkeypatch.setattr(run, "make_inputs", pytest.fail)
    result = capmoe("--model", "olmoe", "--tokens", "64", "--contenders", "plain")
    assert (result.exit_code, result.stdout) == (2, "")
    message = r"capmoe: olmoe: needs 0\.9 GB of memory, and 0\.6 GB are free: .*\n"
    assert re.fullmatch(message, result.stderr), result.stderr


BAD = {
    "model": (["--model", "gpt"], "--model gpt: is not one of olmoe, mixtral"),
    "model and sizes": (["--model", "demo", *SIZES], "go together, without --model"),
    "some sizes": (SIZES[:4], "go together"),
    "top-k": ([*SIZES[:6], "--top-k", "9"], "--top-k 9: must be at most --num-experts 8"),
    "tokens": (["--tokens", "1,0"], "'0' is not a number from 1"),
    "gap": (["--tokens", "1,,2"], "'' is not a number from 1"),
    "factor": (["--capacity-factor", "x"], "'x' is not a number"),
    "contender": (["--contenders", "vllm"], "'vllm' is not one of dense, all-experts"),
    "dtype": (["--dtype", "int8"], "--dtype int8: is not one of bf16, fp16, fp32"),
    "seconds": (["--seconds", "nan"], "--seconds nan: is not a finite number >= 0"),
    "skew": (["--skew", "-1"], "--skew -1.0: is not a finite number >= 0"),
    "device": (["--device", "abacus"], "--device abacus: "),
    "json folder": (["--json", "gone/o.json"], "no such folder gone"),
    "plot format": (["--plot", "o.doc"], "ends in .png"),
    "one file": (["--json", "o.png", "--plot", "o.png"], "must be two files"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_one_line_and_exit_2(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "make_inputs", pytest.fail)
    arguments, message = BAD[name]
    result = capmoe(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("capmoe: ")
    assert re.search(message, result.stderr), result.stderr
