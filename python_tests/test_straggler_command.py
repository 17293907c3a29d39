"""``capmoe straggler``: on a model, its trace, traces of others, and errors in one line."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import capmoe_kernels as cm
from capmoe_kernels.cli.app import app
from tiny_model import EXPERTS, LAYERS, TOP_K, save_tiny


def capmoe(*arguments):
    return CliRunner().invoke(app, ["straggler", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straggler")
    save_tiny(folder / "tiny")
    (folder / "text.txt").write_text("The straggler effect: déjà vu, 見る. " * 20)
    random = torch.Generator().manual_seed(2)
    logits = torch.randn(24, 8, generator=random)
    save_file(
        {"layers.0.router_logits": logits, "step_tokens": torch.tensor([16, 8])},
        folder / "logits.safetensors",
        metadata={"top_k": "2", "hidden_size": "16", "dtype": "bfloat16", "source": "random"},
    )
    ids = cm.route(logits, cm.Gating(top_k=2)).expert_ids
    metadata = {"num_experts": "8"}
    save_file({"layers.0.topk_ids": ids}, folder / "ids.safetensors", metadata=metadata)
    save_file({"layers.0.topk_ids": ids}, folder / "unsaid.safetensors")
    save_file({"layers.0.topk_ids": logits}, folder / "real.safetensors", metadata=metadata)
    save_file({"layers.0.router_logits": logits}, folder / "no_k.safetensors")
    save_file({"x": ids}, folder / "other.safetensors")
    bad = {"layers.0.topk_ids": ids, "step_tokens": torch.tensor([5])}
    save_file(bad, folder / "steps.safetensors", metadata=metadata)
    unlike = {"layers.0.topk_ids": ids, "layers.1.topk_ids": ids[:3].clone()}
    save_file(unlike, folder / "unlike.safetensors", metadata=metadata)
    save_file(
        {"layers.0.topk_ids": ids}, folder / "none.safetensors", metadata={"num_experts": "0"}
    )
    (folder / "torn.safetensors").write_bytes(b"torn")
    return folder


def test_command_on_a_model_and_on_its_trace(folder, tmp_path):
    out, picture, kept = (tmp_path / name for name in ("o.json", "o.png", "o.safetensors"))
    options = ["--devices", "2,4", "--capacity-factor", "1,2"]
    text = ["--text", folder / "text.txt", "--batch-tokens", "256"]
    files = ["--json", out, "--plot", picture, "--save-trace", kept]
    result = capmoe(folder / "tiny", *text, *options, *files)
    assert result.exit_code == 0, result.output
    tree = json.loads(out.read_text())
    assert (tree["num_experts"], tree["top_k"], tree["layers"]) == (EXPERTS, TOP_K, LAYERS)
    assert tree["steps"] > 1
    keys = [(each["devices"], each["expand"], each["factor"]) for each in tree["results"]]
    assert keys == [(d, e, f) for d in (2, 4) for e in ("none", "local") for f in (2.0, 1.0)]
    for each in tree["results"]:
        assert each["before"]["rows"] == tree["tokens"] * TOP_K * LAYERS
        layers = each["per_layer"]
        assert (
            sum(layer["after"]["busiest_device"] for layer in layers)
            == each["after"]["busiest_device"]
        )
    assert picture.stat().st_size > 10_000

    again = tmp_path / "again.json"
    result = capmoe(kept, *options, "--json", again)
    assert result.exit_code == 0, result.output
    assert json.loads(again.read_text())["results"] == tree["results"]
    for line, expected in zip(_lines(result.stdout), tree["results"], strict=True):
        assert f"{expected['device_before']:.2f} → {expected['device_after']:.2f}" in line
        assert f"{expected['bound']:.2f}x" in line
        assert f"{100 * expected['dropped_share']:.1f}" in line


def _lines(output):
    return [line for line in output.splitlines() if "→" in line and re.search(r"\dx", line)]


def test_traces_of_logits_and_of_ids(folder, tmp_path):
    """The first has two steps; with one device and no drop the same pairs are counted."""
    trees = []
    for name in ("logits", "ids"):
        out = tmp_path / f"{name}.json"
        options = ["--devices", "1", "--capacity-factor", "8", "--expand", "none"]
        result = capmoe(folder / f"{name}.safetensors", *options, "--json", out)
        assert result.exit_code == 0, result.output
        trees.append(json.loads(out.read_text()))
    assert [tree["steps"] for tree in trees] == [2, 1]
    assert [tree["results"][0]["before"]["rows"] for tree in trees] == [48, 48]
    assert [tree["source"] for tree in trees] == ["random", "ids.safetensors"]
    assert trees[0]["results"][0]["wire_bytes_before"] == [0]
    assert trees[1]["results"][0]["wire_bytes_before"] is None


BAD = {
    "gone": (["gone"], "gone: no such checkpoint folder or trace file"),
    "torn": (["torn.safetensors"], "torn.safetensors: not a safetensors file"),
    "other tensors": (["other.safetensors"], "no tensor layers.0.topk_ids"),
    "no experts": (["unsaid.safetensors"], "must say num_experts"),
    "bad experts": (["none.safetensors"], "num_experts must be a number >= 1"),
    "no top-k": (["no_k.safetensors"], "must say top_k"),
    "real ids": (["real.safetensors"], "must be whole numbers"),
    "steps": (["steps.safetensors"], "sum to 24 tokens"),
    "unlike layers": (["unlike.safetensors"], "same tokens and top-k"),
    "devices": (["ids.safetensors", "--devices", "0"], "'0' is not a number from 1"),
    "gap": (["ids.safetensors", "--devices", "4,"], "without gaps"),
    "factor": (["ids.safetensors", "--capacity-factor", "x"], "'x' is not a number"),
    "trace folder": (["ids.safetensors", "--save-trace", "gone/t"], "--save-trace gone/t: no such"),
    "no text": (["tiny", "--text", "gone.txt"], "gone.txt: no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_one_line_and_exit_2(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    arguments, message = BAD[name]
    result = capmoe(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert re.search(message, result.stderr), result.stderr
