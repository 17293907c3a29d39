"""``capmoe calibrate`` on a tiny model: its files keep what they promise; errors in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from calibrate_texts import FILES, GRID, capmoe, make_folder
from capmoe_kernels.calibrate import CalibrateRequest, calibrate
from capmoe_kernels.calibrate.passes import Method, Reader, find_drops, taken_over
from capmoe_kernels.calibrate.split import split
from capmoe_kernels.calibrate.words import conclusions
from capmoe_kernels.capacity import Capacity
from capmoe_kernels.distributed import straggler
from capmoe_kernels.evaluate.checkpoint import load
from capmoe_kernels.evaluate.measure import measure
from capmoe_kernels.evaluate.recording import record
from capmoe_kernels.evaluate.settings import DROPLESS, Setting
from capmoe_kernels.evaluate.text import make_batches, read_texts, tokenize
from capmoe_kernels.integrations.capacity_file import read_capacities
from capmoe_kernels.integrations.transformers import (
    apply,
    real_tokens,
    recording,
    undo,
)
from tiny_model import EXPERTS, LAYERS, TOP_K


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("calibrate"))


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
