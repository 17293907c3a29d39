"""``capmoe calibrate`` on a tiny model: its files keep what they promise; errors in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from capmoe_kernels.calibrate import CalibrateRequest, calibrate
from capmoe_kernels.calibrate.passes import Method, Reader, find_drops, taken_over
from capmoe_kernels.calibrate.request import parse_max_loss
from capmoe_kernels.calibrate.split import check_documents, split
from capmoe_kernels.calibrate.words import conclusions
from capmoe_kernels.capacity import Capacity
from capmoe_kernels.cli.app import app
from capmoe_kernels.distributed import straggler
from capmoe_kernels.evaluate.checkpoint import load
from capmoe_kernels.evaluate.errors import UsageError
from capmoe_kernels.evaluate.measure import measure
from capmoe_kernels.evaluate.recording import record
from capmoe_kernels.evaluate.settings import DROPLESS, Setting, parse_factors
from capmoe_kernels.evaluate.text import make_batches, read_texts, tokenize
from capmoe_kernels.integrations.capacity_file import read_capacities
from capmoe_kernels.integrations.transformers import (
    apply,
    real_tokens,
    recording,
    undo,
)
from tiny_model import EXPERTS, LAYERS, TOP_K, save_tiny

FILES = 12
GRID = "4,3,2.5,2,1.5,1"
WORDS = re.findall(
    r"\w+", "when the expert sees a token twice, déjà vu, 見る, the others wait for it"
)


def capmoe(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and files of random words, so that a file says something about another."""
    folder = tmp_path_factory.mktemp("calibrate")
    save_tiny(folder / "tiny")
    random = torch.Generator().manual_seed(7)
    (folder / "texts").mkdir()
    for number in range(FILES):
        picked = torch.randint(0, len(WORDS), (60,), generator=random).tolist()
        text = " ".join(WORDS[at] for at in picked)
        (folder / "texts" / f"{number:02}.txt").write_text(text)
    (folder / "long.txt").write_text(" ".join(WORDS * 80))
    (folder / "short.txt").write_text(" ".join(WORDS * 5))
    (folder / "vacant").mkdir()
    (folder / "again").mkdir()
    (folder / "again" / "copy.txt").write_text((folder / "texts" / "03.txt").read_text())
    return folder


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--devices", "4", "--policy", "random", "--expand", "local"],
    ],
    ids=["busiest expert", "busiest of 4 devices"],
)
def test_command_keeps_what_it_promises(folder, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    files = ["--json", "all.json", "--plot", "all.png"]
    result = capmoe(
        *(folder / "tiny", "--text", folder / "texts", "--max-loss", "0.4%", *options, *files),
        *("--capacity-factor", GRID, "--batch-tokens", 512, "--threads", 1),
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    tree = json.loads(Path("all.json").read_text())
    promised = tree["result"]
    assert any(promised["factors"])
    assert promised["loss"] <= tree["max_loss"] == 0.004
    assert promised["upper"] <= 0.004
    assert Path("all.png").stat().st_size > 20_000
    about = json.loads(Path("capacity.json").read_text())["about"]
    assert about["validation"] == promised
    capacities = read_capacities("capacity.json")
    assert [each and each.factor for each in capacities] == promised["factors"]
    seeds = [each.seed for each in capacities if each]
    ranks = tree["options"]["devices"] or 1
    assert seeds == [layer * ranks for layer, each in enumerate(capacities) if each]

    devices = tree["options"]["devices"]
    loss, busiest = run_validation(folder, tree, "capacity.json", devices)
    assert loss == pytest.approx(promised["loss"], abs=1e-6)
    assert busiest == [layer["busiest_after"] for layer in promised["layers"]]
    _, before = run_validation(folder, tree, None, devices)
    assert before == [layer["busiest_before"] for layer in promised["layers"]]
    assert promised["time"] == pytest.approx(sum(busiest) / sum(before))
    check_table(result.stdout, tree)


def run_validation(folder, tree, capacity, devices):
    """(relative loss, each layer's busiest load) of the model with ``capacity`` from a file."""
    checkpoint = load(folder / "tiny", "cpu")
    paths = [Path(each["path"]) for each in tree["validation"]["documents"]]
    documents = tokenize(read_texts(paths), checkpoint.tokenizer)
    model = apply(checkpoint.model, capacity=capacity, num_ranks=devices or 1)
    nats, busiest = 0.0, [0] * LAYERS
    with torch.inference_mode(), recording(model) as records:
        for batch in make_batches(documents, tree["options"]["window"], 512):
            with real_tokens(model, batch.token_mask):
                logits = model(batch.input_ids, use_cache=False).logits
            nats += float(
                torch.nn.functional.cross_entropy(
                    logits.double().flatten(0, 1), batch.targets.flatten(), reduction="sum"
                )
            )
            for each in records:
                report = straggler(each.routings, devices or 1)
                after = report.after
                busiest[each.layer] += after.busiest_device if devices else after.busiest_expert
            records.clear()
    undo(model)
    return nats / sum(
        each["dropless_nats"] for each in tree["validation"]["documents"]
    ) - 1, busiest


def check_table(output, tree):
    lines = [line for line in output.splitlines() if "→" in line and re.search(r"\dx", line)]
    layers = tree["result"]["layers"]
    assert len(lines) == len(layers) + 1
    for line, layer in zip(lines, layers, strict=False):
        factor = "dropless" if layer["factor"] is None else f" {layer['factor']:g} "
        assert factor in line
        assert f"{layer['bound']:.2f}x" in line
        assert f"{100 * layer['kept']:.1f}" in line
    assert f"{1 / tree['result']['time']:.2f}x" in lines[-1]
    assert f"cost {100 * tree['result']['loss']:+.2f} % bits per byte" in output
    upper = f"{100 * tree['result']['upper']:.2f} %"
    assert f"at most 0.40 % with 95 % confidence (its interval ends at {upper})" in output
    number = len(tree["validation"]["documents"])
    assert f"The confidence is over {number} validation documents, and" in output
    for name in ("capacity.json", "all.json", "all.png"):
        assert f"wrote {name}" in output


def test_from_python_and_with_a_single_file(folder, tmp_path):
    """Pieces of the file's first half calibrate, those of the second validate."""
    out = tmp_path / "c.json"
    found = calibrate(
        CalibrateRequest(
            folder / "tiny", [folder / "long.txt"], 0.1, 0.9, grid=(2, 3), window=64, out=out
        )
    )
    assert read_capacities(out) == found.capacities
    assert len(found.calibration.documents) == len(found.validation.documents) == 10
    text = (folder / "long.txt").read_text()
    size = sum(part.num_bytes for part in (found.calibration, found.validation))
    assert size == len(text.encode())


def test_split_by_file_and_by_pieces():
    texts = [(Path(str(number)), str(number)) for number in range(11)]
    first, second = split(texts)
    assert [text for _, text in second] == ["0", "2", "4", "6", "8", "10"]
    assert [text for _, text in first] == ["1", "3", "5", "7", "9"]
    few = [(Path("a"), "ab" * 3000), (Path("b"), "é" * 5200), (Path("c"), "x" * 9001)]
    first, second = split(few)
    assert len(first) == len(second) == 12
    for path, text in few:
        halves = ["".join(piece for name, piece in part if name == path) for part in split(few)]
        assert "".join(halves) == text
        assert abs(len(halves[0]) - len(halves[1])) <= 1


def test_reader_agrees_with_evaluate_and_straggler(folder):
    """The same losses and loads as ``capmoe evaluate``; the same counts as ``straggler``."""
    checkpoint = load(folder / "tiny", "cpu")
    documents = tokenize(read_texts([folder / "texts"]), checkpoint.tokenizer)
    batches = make_batches(documents, 128, 512)
    method = Method(devices=2)
    settings = [DROPLESS, Setting(1.5)]
    _, runs = measure(checkpoint, batches, len(documents), settings, 2)
    with taken_over(checkpoint, method) as num_layers:
        read = Reader(checkpoint, method, batches)
        found = [read((None,) * LAYERS), read((1.5,) * LAYERS)]
        alone = [
            read(tuple(2.0 if at == layer else None for at in range(LAYERS))) for layer in (0, 1)
        ]
    assert num_layers == LAYERS
    for run, each in zip(runs, found, strict=True):
        assert torch.equal(run.nats, each.nats)
        assert [load.device_after for load in run.layers] == list(each.busiest)
    loads = record(checkpoint, batches).loads(2).chunk(LAYERS)
    drops = find_drops(checkpoint, method, batches)
    for layer, each in enumerate(alone):
        report = straggler(loads[layer], 2, capacity=Capacity(factor=2.0), top_k=TOP_K)
        assert each.busiest[layer] == report.after.busiest_device
        assert drops(layer, 2.0) == (report.dropped > 0)
        assert drops(layer, 0.5)
        assert not drops(layer, EXPERTS / TOP_K)


def test_validation_of_another_kind_is_not_fooled(folder, tmp_path):
    """Half of the files are digits: what fits on the words that calibrate loses more on those."""
    mixed, out = tmp_path / "mixed", tmp_path / "c.json"
    mixed.mkdir()
    random = torch.Generator().manual_seed(1)
    for number in range(FILES):
        letters = "0123456789" if number % 2 == 0 else "the expert waits "
        at = torch.randint(0, len(letters), (250,), generator=random).tolist()
        (mixed / f"{number:02}.txt").write_text("".join(letters[i] for i in at))
    request = CalibrateRequest(
        folder / "tiny", [mixed], 0.002, grid=(3, 2, 1.5, 1), batch_tokens=512, out=out
    )
    found = calibrate(request)
    for answer in (found.found.per_layer, found.found.uniform):
        assert any(answer.best.candidate.factors)
        assert answer.best.loss <= 0.002
        assert answer.proven is None
        assert answer.verdicts[0].upper > 0.002
    assert read_capacities(out) == found.capacities == [None] * LAYERS
    assert "stays dropless" in conclusions(found)[0]


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
