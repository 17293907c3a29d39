"""What ``training.json`` reports: bits per byte, compressors on the same text, expert loads."""

from __future__ import annotations

import gzip
import lzma
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import OlmoeForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capmoe_kernels.demo import corpus

END_OF_TEXT = 256
WINDOW = 1024
STRIDE = 512
LOAD_BATCH = 4096


class Routes:
    """Collects the experts chosen by every layer's router."""

    def __init__(self, model: OlmoeForCausalLM) -> None:
        self.chosen: list[list[Tensor]] = [[] for _ in model.model.layers]
        for chosen, layer in zip(self.chosen, model.model.layers, strict=True):
            layer.mlp.gate.register_forward_hook(
                lambda _module, _inputs, output, chosen=chosen: chosen.append(output[2])
            )

    def indices(self) -> Tensor:
        """``[layers, tokens, top_k]``, in the order in which the tokens were read."""
        return torch.stack([torch.cat(chosen) for chosen in self.chosen])


def window_starts(length: int, stride: int) -> list[int]:
    """Starts of the windows that together score every one of ``length`` bytes."""
    starts = [0]
    while starts[-1] + WINDOW < length:
        starts.append(starts[-1] + stride)
    return starts


@torch.no_grad()
def file_nats(model: OlmoeForCausalLM, data: bytes, stride: int) -> float:
    """Total loss of a file's bytes, in windows of ``WINDOW`` every ``stride`` bytes.

    A window sees nothing before its own start; each byte is scored once, in the first window that
    holds it.  The first byte of the file is predicted from ``<|endoftext|>``.
    """
    tokens = torch.tensor([END_OF_TEXT, *data])
    total = 0.0
    starts = window_starts(len(data), stride)
    for first in range(0, len(starts), 4):
        group = starts[first : first + 4]
        # The last window of a file is shorter, so it goes alone.
        whole = [s for s in group if s + WINDOW <= len(data)]
        for part in (whole, [s for s in group if s not in whole]):
            if not part:
                continue
            size = min(WINDOW, len(data) - part[0])
            ids = torch.stack([tokens[s : s + size] for s in part])
            targets = torch.stack([tokens[s + 1 : s + size + 1] for s in part])
            logits = model(ids, use_cache=False).logits.float()
            losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").double()
            for row, s in enumerate(part):
                skip = 0 if s == 0 else WINDOW - stride
                total += float(losses[row, skip:].sum())
    return total


def loads(indices: Tensor, experts: int) -> Tensor:
    """Tokens of each expert over the mean, ``[layers, experts]``."""
    flat = indices.flatten(1)
    counts = torch.stack([torch.bincount(row, minlength=experts) for row in flat]).double()
    return counts / counts.mean(1, keepdim=True)


def load_facts(indices: Tensor, experts: int) -> dict[str, Any]:
    """Busiest and coldest expert of every layer, in batches and over the whole text."""
    whole = loads(indices, experts)
    batches = [
        loads(part, experts)
        for part in indices.split(LOAD_BATCH, dim=1)
        if part.shape[1] == LOAD_BATCH
    ]
    busiest = torch.stack([batch.amax(1) for batch in batches])
    flat = indices.flatten(1)
    fewest = [int(torch.bincount(row, minlength=experts).min()) for row in flat]

    def rounded(values: Tensor) -> list[float]:
        return [round(float(value), 3) for value in values]

    return {
        "tokens": indices.shape[1],
        "busiest_over_mean_per_layer": rounded(whole.amax(1)),
        "coldest_over_mean_per_layer": rounded(whole.amin(1)),
        "fewest_tokens_of_an_expert_per_layer": fewest,
        "batches": len(batches),
        "batch_tokens": LOAD_BATCH,
        "batch_busiest_over_mean_per_layer": {
            "mean": rounded(busiest.mean(0)),
            "least": rounded(busiest.amin(0)),
            "most": rounded(busiest.amax(0)),
        },
        "batch_experts_without_tokens_per_layer_mean": rounded(
            torch.stack([(batch == 0).double().sum(1) for batch in batches]).mean(0)
        ),
    }


def compressors(text: bytes) -> dict[str, float]:
    """What general compressors make of the same text, in bits per byte."""
    # The dictionary holds the whole training text, so the second pass can point into all of it.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    training = b"".join(path.read_bytes() for path in corpus.training_files())

    def xz(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))

    sizes = {
        "gzip_9": len(gzip.compress(text, 9)),
        "xz_9e": xz(text),
        "xz_9e_after_training_text": xz(training + text) - xz(training),
    }
    return {name: round(8 * size / len(text), 4) for name, size in sizes.items()}
