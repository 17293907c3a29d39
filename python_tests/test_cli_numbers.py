"""The numbers of ``capmoe evaluate``, against ones computed another way."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from capmoe_kernels.cli.app import app
from capmoe_kernels.evaluate.results import paired_change
from capmoe_kernels.evaluate.text import make_batches, read_texts, tokenize
from capmoe_kernels.evaluate.words import conclusions
from tiny_model import EXPERTS, TOP_K, byte_tokenizer, save_tiny

WINDOW, DEVICES, SEPARATOR = 40, 4, 256
FILES = {"a.txt": "é" + "ab, " * 23, "b.txt": "quick brown fox", "c.txt": "0123456789" * 9}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def tree(checkpoint, texts):
    out = texts.parent / "numbers.json"
    grid = ["--capacity-factor", "1.5,0.75", "--policy", "score", "--devices", str(DEVICES)]
    sizes = ["--window", str(WINDOW), "--batch-tokens", "80"]
    arguments = ["evaluate", str(checkpoint), "--text", str(texts), "--json", str(out)]
    result = CliRunner().invoke(app, [*arguments, *grid, *sizes])
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def windows():
    """(file, tokens) of each window: 40 inputs and the targets one further."""
    out = []
    for index, name in enumerate(sorted(FILES)):
        tokens = [SEPARATOR, *byte_tokenizer()(FILES[name])["input_ids"]]
        starts = range(0, len(tokens) - 1, WINDOW)
        out += [(index, tokens[start : start + WINDOW + 1]) for start in starts]
    return out


@pytest.fixture(scope="module")
def alone(checkpoint, windows):
    """Transformers on every window by itself, without padding: (nats, router's choice [S, k])."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    out, chosen = [], []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda _m, _i, o: chosen.append(o[2]))
    for _, tokens in windows:
        with torch.inference_mode():
            logits = model(torch.tensor([tokens[:-1]])).logits[0]
        nats = F.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="sum")
        out.append((float(nats), chosen.pop()))
    return out


def test_bits_per_byte_is_the_sum_over_windows(tree, windows, alone):
    num_bytes = sum(len(text.encode()) for text in FILES.values())
    expected = sum(nats for nats, _ in alone) / math.log(2) / num_bytes
    assert tree["transformers"]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert tree["dropless"]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert tree["dropless"]["largest_nll_difference"] < 1e-4
    for index, nats in enumerate(tree["dropless"]["file_nats"]):
        own = sum(n for (file, _), (n, _) in zip(windows, alone, strict=True) if file == index)
        assert nats == pytest.approx(own, rel=1e-5)


def loads(alone, factor):
    """Sums over forward passes of two windows; the only layer sees the same whatever is dropped."""
    names = ("asked", "kept", "before", "after", "device_before", "device_after")
    sums = dict.fromkeys(names, 0)
    for first in range(0, len(alone), 2):
        chosen = torch.cat([ids for _, ids in alone[first : first + 2]])
        before = torch.bincount(chosen.flatten(), minlength=EXPERTS)
        after = torch.zeros_like(before)
        for rank in chosen.tensor_split(DEVICES):
            limit = math.ceil(factor * TOP_K * len(rank) / EXPERTS)
            after += torch.bincount(rank.flatten(), minlength=EXPERTS).clamp(max=limit)
        per_device = EXPERTS // DEVICES
        for name, value in zip(
            names,
            (
                before.sum(),
                after.sum(),
                before.max(),
                after.max(),
                max(part.sum() for part in before.split(per_device)),
                max(part.sum() for part in after.split(per_device)),
            ),
            strict=True,
        ):
            sums[name] += int(value)
    return sums


@pytest.mark.parametrize("factor", [1.5, 0.75])
def test_loads_are_those_of_the_models_own_router(tree, alone, factor):
    sums = loads(alone, factor)
    (result,) = (
        each for each in tree["results"] if (each["factor"], each["expand"]) == (factor, "none")
    )
    mean, device_mean = sums["asked"] / EXPERTS, sums["asked"] / DEVICES
    load = result["load"]
    assert load["kept"] == pytest.approx(sums["kept"] / sums["asked"])
    assert load["extra"] == 0
    assert load["expert_before"] == pytest.approx(sums["before"] / mean)
    assert load["expert_after"] == pytest.approx(sums["after"] / mean)
    assert load["expert_bound"] == pytest.approx(sums["before"] / sums["after"])
    assert load["device_before"] == pytest.approx(sums["device_before"] / device_mean)
    assert load["device_after"] == pytest.approx(sums["device_after"] / device_mean)
    assert load["device_bound"] == pytest.approx(sums["device_before"] / sums["device_after"])


def test_expanded_drop_runs_extra_pairs_within_the_same_bound(tree):
    for plain, expanded in zip(tree["results"][:2], tree["results"][2:], strict=True):
        assert expanded["expand"] == "local"
        assert expanded["load"]["extra"] > 0
        assert expanded["load"]["kept"] <= plain["load"]["kept"]  # extra pairs take their places
        total = expanded["load"]["kept"] + expanded["load"]["extra"]
        assert total >= plain["load"]["kept"]
        slack = 2.0  # every rank's C is rounded up
        assert expanded["load"]["expert_after"] <= expanded["factor"] * slack


def test_change_and_its_error():
    base = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    sizes = torch.tensor([5.0, 10.0, 15.0], dtype=torch.float64)
    change, error = paired_change(base * 1.1, base, sizes)
    assert change == pytest.approx(6 / 30 / math.log(2))
    assert error == pytest.approx(0, abs=1e-12)  # every file changed by the same per byte
    change, error = paired_change(base + torch.tensor([3.0, 0.0, 0.0]), base, sizes)
    beyond = [3 - 5 * 0.1, -10 * 0.1, -15 * 0.1]
    expected = math.sqrt(sum(x * x for x in beyond) * 3 / 2) / 30 / math.log(2)
    assert change == pytest.approx(0.1 / math.log(2))
    assert error == pytest.approx(expected)
    assert paired_change(base[:1] + 1, base[:1], sizes[:1])[1] is None


def test_every_token_is_a_target_once():
    paths = [(None, "x" * n) for n in (1, 39, 40, 41, 200)]
    documents = tokenize(paths, byte_tokenizer())
    batches = make_batches(documents, WINDOW, 120)
    assert sum(batch.num_tokens for batch in batches) == sum(n for n in (1, 39, 40, 41, 200))
    assert all(batch.input_ids.numel() <= 120 for batch in batches)
    targets = [int((b.targets[b.documents == 4] != -100).sum()) for b in batches]
    assert sum(targets) == 200


def test_bytes_are_cut_between_characters(tmp_path):
    (tmp_path / "t").write_text("aéé")
    assert read_texts([tmp_path / "t"], 4) == [(tmp_path / "t", "aé")]


def test_words_follow_the_numbers(checkpoint, texts):
    from capmoe_kernels.evaluate.run import Request, run
    from capmoe_kernels.evaluate.settings import make_grid

    grid = make_grid([2.0, 0.75], ["score", "keep_first"], ["none", "local"])
    evaluation = run(Request(checkpoint, [texts], grid, DEVICES)).evaluation
    words = " ".join(conclusions(evaluation))
    (score,) = (r for r in evaluation.results if r.setting == grid[1])
    assert grid[1].factor == 0.75
    peak = evaluation.dropless.layers[0].load.expert_before
    assert f"the busiest expert of layer 1 gets {peak:.1f}x the mean" in words
    assert f"at most {score.load.expert_bound:.1f}x shorter" in words
    assert f"costs {score.change:+.3f} ± {score.change_error:.3f} bits per byte" in words
    assert "Expanded Drop" in words
    only_first = run(Request(checkpoint, [texts], make_grid([1.0], ["random"], ["none"]), 1))
    assert len(conclusions(only_first.evaluation)) == 1
