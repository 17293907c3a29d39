"""What capmoe calibrate refuses, in one line and before any work."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from calibrate_texts import capmoe, make_folder
from capmoe_kernels.calibrate.request import parse_max_loss
from capmoe_kernels.calibrate.split import check_documents
from capmoe_kernels.capacity import Capacity
from capmoe_kernels.cli.app import app
from capmoe_kernels.evaluate.errors import UsageError
from capmoe_kernels.evaluate.settings import parse_factors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("calibrate"))


@pytest.mark.parametrize(
    ("text", "value"), [("0.5%", 0.005), (" 2 % ", 0.02), ("0.005", 0.005), ("50%", 0.5)]
)
def test_max_loss(text, value):
    assert parse_max_loss(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["0.5", "1", "x", "%", "0", "-1%", "nan%", "101%", "inf", ""])
def test_bad_max_loss(text):
    with pytest.raises(UsageError, match="--max-loss"):
        parse_max_loss(text)


TEXT = ["tiny", "--text", "texts"]
BAD = {
    "no model": (["gone", "--text", "texts"], "gone: not a Hugging Face checkpoint folder"),
    "no text": (["tiny"], "--text: give text such as your model reads"),
    "text gone": (["tiny", "--text", "gone"], "--text gone: no such file or folder"),
    "short text": (["tiny", "--text", "short.txt"], "at least 5120 characters each, got"),
    "ambiguous loss": ([*TEXT, "--max-loss", "0.5"], "0.5% or 50%, it is clear"),
    "loss": ([*TEXT, "--max-loss", "x"], "--max-loss x: expected a number such as 0.5%"),
    "confidence": ([*TEXT, "--confidence", "95"], "--confidence 95: must be from 0.5"),
    "devices": ([*TEXT, "--devices", "3"], "--devices 3: must divide .* 8 experts"),
    "policy": ([*TEXT, "--policy", "best"], "--policy best: must be one of score, keep_first"),
    "expand": ([*TEXT, "--expand", "rank"], "--expand rank: must be one of none, local"),
    "factor": ([*TEXT, "--capacity-factor", "1,x"], "'x' is not a number"),
    "tiny factor": ([*TEXT, "--capacity-factor", "2,1e-9"], "2,1e-9: 1e-9 is not 0 or at least"),
    "window": ([*TEXT, "--window", "999"], "at most 128 tokens"),
    "decoding": ([*TEXT, "--window", "1"], "--window 1: must be at least 2; .* a decoding step"),
    "same text": (
        ["tiny", "--text", "texts", "--text", "again/copy.txt"],
        r"--text: texts/03.txt and again/copy.txt have the same text",
    ),
    "out folder": ([*TEXT, "--out", "gone/c.json"], "--out gone/c.json: no such folder gone"),
    "out is a folder": ([*TEXT, "--out", "vacant"], "--out vacant: is a folder"),
    "json folder": ([*TEXT, "--json", "gone/o.json"], "no such folder gone"),
    "plot format": ([*TEXT, "--plot", "o.doc"], "ends in .png"),
    "one file twice": ([*TEXT, "--json", "capacity.json"], "is what --out writes, too"),
}


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--capacity-factor", "1e-9"],
        ["evaluate", "tiny", "--text", "texts", "--capacity-factor", "1e-9"],
        ["straggler", "--capacity-factor", "1e-9"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_factor_that_would_be_zero_is_refused_by_all_commands(folder, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "--capacity-factor 1e-9: 1e-9 is not 0 or at least 1e-06" in result.stderr


def test_least_factor_is_taken():
    assert parse_factors("1e-6,0") == [1e-6, 0.0]
    assert Capacity(factor=1e-6).factor == 1e-6


def test_documents_too_short_to_predict_do_not_count():
    check_documents(5)
    with pytest.raises(UsageError, match=r"only 4 of a part's documents .* at least 5"):
        check_documents(4)


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_one_line_and_exit_2(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    arguments, message = BAD[name]
    result = capmoe(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert re.search(message, result.stderr), result.stderr
    assert sorted(folder.rglob("*")) == before


def test_outputs_are_refused_before_any_work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("capmoe_kernels.calibrate.run.read_texts", None)
    result = capmoe(*TEXT, "--out", "gone/c.json")
    assert "--out gone/c.json: no such folder gone" in result.stderr


def test_missing_scipy_names_its_extra(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        "capmoe_kernels.calibrate.request.find_spec", lambda name: None if name == "scipy" else name
    )
    result = capmoe(*TEXT)
    assert result.exit_code == 2
    assert result.stderr == (
        "capmoe: calibrate needs scipy: pip install 'capmoe-kernels[placement]'\n"
    )
