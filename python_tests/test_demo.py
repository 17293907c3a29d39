"""``capmoe demo``: on a tiny stand-in for the model, and, where it is there, on the real one."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from typer.testing import CliRunner

from capmoe_kernels.cli.app import app
from capmoe_kernels.demo import run as demo
from tiny_model import save_tiny

MODEL = files("capmoe_kernels.demo") / "model"
needs_model = pytest.mark.skipif(
    not (MODEL / "model.safetensors").is_file(), reason=f"the demo's model is not at {MODEL}"
)


def capmoe_demo(*options):
    return CliRunner().invoke(app, ["demo", *options])


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(in_folder, monkeypatch):
    """The demo with a random model."""
    save_tiny(in_folder / "model")
    monkeypatch.setattr(demo, "files", lambda _package: in_folder)
    return in_folder


def check_words(stdout):
    """Three lines on what is measured, the table, and sentences about it."""
    introduction = stdout.splitlines()[:3]
    assert introduction[0].startswith("The straggler effect")
    assert introduction[1].startswith("A capacity")
    assert introduction[2].startswith("Measured here")
    for words in ("dropless", "keep_first", "score, local", "What this shows", "Expanded Drop"):
        assert words in stdout


def test_demo_explains_measures_and_draws(stand_in):
    result = capmoe_demo("--quick", "--json", "out.json")
    assert result.exit_code == 0, result.output
    check_words(result.stdout)
    tree = json.loads((stand_in / "out.json").read_text())
    assert len(tree["results"]) == 5
    assert (stand_in / "capmoe_demo.png").read_bytes().startswith(b"\x89PNG")
    assert result.stdout.endswith("wrote out.json\nwrote capmoe_demo.png\n")


def test_demo_compares_every_policy_at_every_factor():
    request = demo._request(MODEL, None, demo.Path("x.png"), quick=False)
    assert len(request.settings) == len(set(request.settings)) == 4 * 5
    assert len(request.texts) >= 10


def test_demo_without_its_model(in_folder, monkeypatch):
    monkeypatch.setattr(demo, "files", lambda _package: in_folder)
    result = capmoe_demo()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("capmoe: the demo's model is not installed")
    assert result.stderr.count("\n") == 1


def test_demo_checks_its_files_before_the_work(stand_in):
    result = capmoe_demo("--plot", "gone/picture.png")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "capmoe: --plot gone/picture.png: no such folder gone\n"


@needs_model
def test_the_real_model_shows_the_straggler_effect(in_folder):
    result = capmoe_demo("--quick", "--json", "out.json")
    assert result.exit_code == 0, result.output
    check_words(result.stdout)
    assert "dropless equals Transformers" in result.stdout
    tree = json.loads((in_folder / "out.json").read_text())
    dropless = tree["dropless"]
    assert 0.5 < dropless["bits_per_byte"] < 2.5  # a language model of Python source
    assert max(layer["load"]["expert_before"] for layer in dropless["layers"]) > 2.5
    plain = {r["policy"]: r for r in tree["results"] if r["expand"] == "none"}
    for result in plain.values():
        assert result["factor"] == 1.0
        assert 0.2 < result["load"]["kept"] < 1.0
        assert result["load"]["expert_after"] < 1.2
        assert result["load"]["expert_bound"] > 2.0
    costs = {policy: result["change"] for policy, result in plain.items()}
    assert 0 < costs["score"] < min(costs["keep_first"], costs["keep_last"], costs["random"])
