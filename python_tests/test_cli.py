"""The ``capmoe`` command: its errors in one line, its table and its files."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from capmoe_kernels.backends import backends
from capmoe_kernels.cli import needs
from capmoe_kernels.cli.app import app
from tiny_model import save_tiny

TEXT = "The straggler effect: déjà vu, 見る. " * 12
GRID = ["--capacity-factor", "1.0,0.5", "--policy", "score,random", "--devices", "4"]


def capmoe(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, three texts, and what is wrong in every other way."""
    folder = tmp_path_factory.mktemp("cli")
    save_tiny(folder / "tiny")
    save_tiny(folder / "mute", tokenizer=False)
    dense = save_tiny(folder / "dense")
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(dense)
    torn = save_tiny(folder / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    (save_tiny(folder / "garbled") / "config.json").write_text("{")
    texts = folder / "texts"
    (texts / ".git").mkdir(parents=True)
    (texts / ".git" / "hidden.txt").write_text("hidden")
    (texts / "binary.bin").write_bytes(b"\xff\xfe\x00")
    (texts / "nothing.txt").write_text("")
    for name in "abc":
        (texts / f"{name}.txt").write_text(name + TEXT)
    (folder / "vacant").mkdir()
    return folder


@pytest.fixture(scope="module")
def evaluated(folder):
    out, picture = folder / "out.json", folder / "out.png"
    result = capmoe(
        *("evaluate", folder / "tiny", "--text", folder / "texts", *GRID),
        *("--json", out, "--plot", picture),
    )
    assert result.exit_code == 0, result.output
    return result, json.loads(out.read_text()), picture


BAD = {
    "no model": (["nowhere", "--text", "texts"], "nowhere: not a Hugging Face checkpoint"),
    "a folder without a model": (["texts", "--text", "texts"], "no config.json"),
    "no experts": (["dense", "--text", "texts"], "'llama' has no MoE blocks .* olmoe"),
    "no tokenizer": (["mute", "--text", "texts"], "mute: no tokenizer"),
    "torn weights": (["torn", "--text", "texts"], "torn: cannot load the model"),
    "garbled config": (["garbled", "--text", "texts"], "garbled: cannot load the configuration"),
    "no text": (["tiny", "--text", "missing.txt"], "missing.txt: no such file"),
    "no text among several": (["tiny", "--text", "texts", "gone.txt"], "gone.txt: no such file"),
    "empty text": (["tiny", "--text", "texts/nothing.txt"], "nothing.txt: no text"),
    "empty folder": (["tiny", "--text", "vacant"], "vacant: no text"),
    "binary text": (["tiny", "--text", "texts/binary.bin"], "binary.bin: not a readable UTF-8"),
    "factor": (["tiny", "--text", "texts", "--capacity-factor", "1,x"], "'x' is not a number"),
    "negative": (
        ["tiny", "--text", "texts", "--capacity-factor", "-1"],
        "not a finite number >= 0",
    ),
    "nan": (["tiny", "--text", "texts", "--capacity-factor", "nan"], "not a finite number >= 0"),
    "gap": (["tiny", "--text", "texts", "--capacity-factor", "1,,2"], "without gaps"),
    "policy": (["tiny", "--text", "texts", "--policy", "best"], "'best' is not one of score, keep"),
    "expand": (["tiny", "--text", "texts", "--expand", "rank"], "'rank' is not one of none, local"),
    "devices": (["tiny", "--text", "texts", "--devices", "3"], "--devices 3: must divide .* 8"),
    "window": (["tiny", "--text", "texts", "--window", "999"], "at most 128 tokens"),
    "device": (["tiny", "--text", "texts", "--device", "abacus"], "--device abacus: "),
    "json folder": (["tiny", "--text", "texts", "--json", "gone/o.json"], "no such folder gone"),
    "plot folder": (["tiny", "--text", "texts", "--plot", "gone/o.png"], "no such folder gone"),
    "plot is a folder": (["tiny", "--text", "texts", "--plot", "vacant"], "is a folder"),
    "plot format": (["tiny", "--text", "texts", "--plot", "o.doc"], "ends in .png"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_one_line_and_exit_2(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    arguments, message = BAD[name]
    result = capmoe("evaluate", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("capmoe: ")
    assert re.search(message, result.stderr), result.stderr


def test_too_short_text(folder, tmp_path):
    """Without a separator token, one byte leaves nothing to predict."""
    checkpoint = save_tiny(tmp_path / "model")
    settings = checkpoint / "tokenizer_config.json"
    tree = json.loads(settings.read_text()) | {"eos_token": None}
    settings.write_text(json.dumps(tree))
    (tmp_path / "short.txt").write_text("x")
    result = capmoe("evaluate", checkpoint, "--text", tmp_path / "short.txt")
    assert result.exit_code == 2
    assert result.stderr == (
        "capmoe: the text is shorter than two tokens: there is nothing to predict\n"
    )


@pytest.mark.parametrize("command", ["evaluate", "demo"])
def test_missing_package_names_the_extra(monkeypatch, command):
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name == "matplotlib" else name)
    arguments = ["tiny", "--text", "t"] if command == "evaluate" else []
    result = capmoe(command, *arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        "capmoe: matplotlib is not installed: pip install 'capmoe-kernels[cli]'\n"
    )


def test_command_runs_as_a_process(folder):
    command = [sys.executable, "-m", "capmoe_kernels.cli", "evaluate", "gone", "--text", "gone"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "capmoe: --text gone: no such file or folder\n"


def test_info_says_what_serves_and_why_not():
    result = capmoe("info")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert torch.__version__ in words
    for backend, reason in backends().absent.items():
        assert f"not {backend} {reason}" in words
    for device in backends().serving:
        assert f"on {device}" in words


def test_table_has_every_line_and_the_json_s_numbers(evaluated):
    result, tree, _ = evaluated
    assert result.stderr == ""
    table = [line for line in result.stdout.splitlines() if "→" in line and "±" in line]
    assert len(table) == len(tree["results"]) == 8
    for line, expected in zip(table, tree["results"], strict=True):
        load = expected["load"]
        for value in (
            f"{expected['factor']:g}",
            f"{100 * load['kept']:.1f}",
            f"{load['expert_before']:.2f} → {load['expert_after']:.2f}",
            f"{load['device_before']:.2f} → {load['device_after']:.2f}",
            f"{load['expert_bound']:.2f}x",
            f"{load['device_bound']:.2f}x",
            f"{expected['bits_per_byte']:.4f}",
            f"{expected['change']:+.4f} ± {expected['change_error']:.4f}",
            f"{expected['moe_ms']:.2f}",
            f"{expected['speed']:.2f}x",
        ):
            assert value in line
    assert "dropless equals Transformers: bits per byte differ by 0.0000" in result.stdout


def test_json_is_complete(evaluated, folder):
    _, tree, _ = evaluated
    files = [entry["path"] for entry in tree["text"]["files"]]
    assert files == [str(folder / "texts" / f"{name}.txt") for name in "abc"]
    assert tree["text"]["bytes"] == sum((folder / file).stat().st_size for file in files)
    assert tree["schema"] == 1
    assert tree["versions"]["torch"] == torch.__version__
    assert tree["transformers"]["speed"] == 1.0
    for result in tree["results"]:  # the text is one batch, so a median is the number itself
        speed = tree["transformers"]["moe_ms"] / result["moe_ms"]
        assert result["speed"] == pytest.approx(speed)
    assert {"command", "date", "machine", "model", "options", "backends"} <= set(tree)
    settings = [(each["factor"], each["policy"], each["expand"]) for each in tree["results"]]
    assert settings == [
        (factor, policy, expand)
        for expand in ("none", "local")
        for policy in ("score", "random")
        for factor in (1.0, 0.5)
    ]
    assert tree["transformers"]["load"] is None
    assert tree["dropless"]["load"]["kept"] == 1.0
    for result in [tree["dropless"], *tree["results"]]:
        assert len(result["layers"]) == 2
        assert len(result["file_nats"]) == 3
        for layer in result["layers"]:
            for when in ("sorted_before", "sorted_after"):
                assert layer[when] == sorted(layer[when], reverse=True)
                assert layer[when][0] == pytest.approx(layer["load"][f"expert_{when[7:]}"])


def test_plot_is_a_picture(evaluated):
    from matplotlib.image import imread

    pixels = imread(evaluated[2])
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, pixels.shape[2])}) > 10


def test_more_texts_may_follow_the_first(folder, tmp_path):
    out = tmp_path / "out.json"
    texts = [folder / "texts" / f"{name}.txt" for name in "ab"]
    grid = ["--capacity-factor", "1", "--policy", "score", "--expand", "none", "--devices", "1"]
    result = capmoe("evaluate", folder / "tiny", "--text", *texts, *grid, "--json", out)
    assert result.exit_code == 0, result.output
    tree = json.loads(out.read_text())
    assert [entry["path"] for entry in tree["text"]["files"]] == [str(path) for path in texts]


def test_factor_zero_drops_everything_and_still_reports(folder, tmp_path):
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    grid = ["--capacity-factor", "0", "--policy", "score", "--expand", "none"]
    result = capmoe(
        *("evaluate", folder / "tiny", "--text", folder / "texts", *grid, "--max-bytes", "50"),
        *("--json", out, "--plot", picture),
    )
    assert result.exit_code == 0, result.output
    load = json.loads(out.read_text())["results"][0]["load"]
    assert load["kept"] == 0.0
    assert load["orphans"] == 1.0
    assert load["expert_bound"] is None
    assert picture.read_text().lstrip().startswith("<?xml")
