"""Train the demo model on the standard library's source with one processor core.

    OMP_NUM_THREADS=1 python bench/train_demo_model.py --minutes 67 --out DIR

The learning rate follows the clock, not the step count, so the run ends on time on any machine.
``DIR/checkpoint.safetensors`` is rewritten every few minutes; ``bench/export_demo_model.py`` turns
any of them into a Transformers model and measures it.  Windows are 512 bytes long at first, which
is cheaper, and 1024 for the last part of the run; a checkpoint from before reads only 512 well.
"""

from __future__ import annotations

import os

# Read by oneDNN when torch is imported; its default of 1024 kernels is less than the shapes here.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_net import Shape, forward, init_params, parameter_count
from muon import Muon
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capmoe_kernels.demo import corpus

END_OF_TEXT = 256
LIBRARY_REPEATS = 3


def training_tokens() -> tuple[list[NDArray[np.int64]], int]:
    """Every training document (library code ``LIBRARY_REPEATS`` times), and the bytes of text."""
    documents: list[NDArray[np.int64]] = []
    size = 0
    for path in corpus.training_files():
        data = path.read_bytes()
        size += len(data)
        tokens = np.frombuffer(b"\0" + data, dtype=np.uint8).astype(np.int64)
        tokens[0] = END_OF_TEXT
        # Tests are numerous and repetitive; library code is what the held-out files look like.
        documents.extend([tokens] * (1 if corpus.is_test(path) else LIBRARY_REPEATS))
    return documents, size


class Windows:
    """Shuffled windows of the shuffled documents, for ever, at any length."""

    def __init__(self, documents: list[NDArray[np.int64]], seed: int) -> None:
        self.documents = documents
        self.rng = np.random.default_rng(seed)
        self.pool: Iterator[NDArray[np.int64]] = iter(())
        self.length = 0
        self.epochs = 0

    def _epoch(self) -> Iterator[NDArray[np.int64]]:
        self.epochs += 1
        order = self.rng.permutation(len(self.documents))
        text = np.concatenate([self.documents[i] for i in order])
        first = int(self.rng.integers(self.length))
        starts = np.arange(first, len(text) - self.length - 1, self.length)
        self.rng.shuffle(starts)
        for start in starts:
            yield text[start : start + self.length + 1]

    def batch(self, tokens: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``[tokens // length, length]``."""
        if length != self.length:
            self.length, self.pool = length, iter(())
        rows: list[NDArray[np.int64]] = []
        while len(rows) < tokens // length:
            row = next(self.pool, None)
            if row is None:
                self.pool = self._epoch()
            else:
                rows.append(row)
        both = torch.from_numpy(np.stack(rows))
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


class Optimizer:
    """Muon for the matrices inside the layers, Adam for everything else."""

    def __init__(self, params: dict[str, Tensor], shape: Shape, args: argparse.Namespace) -> None:
        def matching(*parts: str) -> list[Tensor]:
            return [value for name, value in params.items() if any(p in name for p in parts)]

        def muon(members: list[Tensor], rows: int) -> Muon:
            return Muon(members, rows, momentum=0.95, decay=args.decay)

        self.params = params
        self.muon_lr = args.lr
        # The gate and the up projection lie in one parameter but are two matrices.
        self.muons = [
            muon(matching("_proj.weight"), shape.hidden),
            muon(matching("gate_up_proj"), shape.width),
            muon(matching("down_proj"), shape.hidden),
        ]
        groups = [
            (matching("embed_tokens"), 1e-2),
            (matching("lm_head"), 4e-3),
            (matching("mlp.gate."), args.router_lr),
            (matching("norm"), 5e-3),
        ]
        self.adam = torch.optim.AdamW(
            [{"params": members, "lr": lr, "base": lr} for members, lr in groups],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )

    def step(self, factor: float) -> None:
        """Update every parameter with the learning rates times ``factor``; clear gradients."""
        for muon in self.muons:
            muon.step(self.muon_lr * factor)
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * factor
        self.adam.step()
        for value in self.params.values():
            value.grad = None


def schedule(progress: float, flat: float) -> float:
    """Learning-rate factor: a short warm-up, a flat stretch, then linearly to zero."""
    return min(1.0, progress / 0.01 + 0.05, max(0.0, 1 - progress) / (1 - flat))


def skew(loads: Tensor) -> str:
    """Busiest and coldest expert over the mean, layer by layer."""
    share = loads / loads.mean(1, keepdim=True)
    return " ".join(f"{row.max():.1f}/{row.min():.2f}" for row in share)


def main() -> None:
    """Train until the clock runs out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=67.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--width", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8192, help="bytes in one step")
    parser.add_argument("--length", type=int, default=512, help="window length")
    parser.add_argument("--long-from", type=float, default=0.7, help="then windows are doubled")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--router-lr", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.03)
    parser.add_argument("--flat", type=float, default=0.2, help="share of the run at full rate")
    parser.add_argument("--floor", type=float, default=0.1, help="share of the mean load")
    parser.add_argument("--floor-weight", type=float, default=1e-3)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    shape = Shape(
        layers=args.layers,
        heads=args.heads,
        experts=args.experts,
        top_k=args.top_k,
        width=args.width,
    )
    params = init_params(shape, torch.Generator().manual_seed(args.seed))
    documents, text_bytes = training_tokens()
    windows = Windows(documents, args.seed)
    optimizer = Optimizer(params, shape, args)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{parameter_count(params):,} parameters, {text_bytes:,} bytes of text", flush=True)

    facts: dict[str, Any] = {"shape": asdict(shape), "arguments": {**vars(args), "out": None}}
    facts |= {"parameters": parameter_count(params), "training_bytes": text_bytes}

    start = time.monotonic()
    saved, step, seen, progress = start, 0, 0, 0.0
    loss_mean, load_sum = 0.0, torch.zeros(shape.layers, shape.experts)
    while progress < 1:
        length = args.length * (2 if progress >= args.long_from else 1)
        inputs, targets = windows.batch(args.batch, length)
        losses, penalty, loads = forward(params, shape, inputs, targets, args.floor)
        loss = losses.mean()
        (loss + args.floor_weight * penalty).backward()
        optimizer.step(schedule(progress, args.flat))
        step, seen = step + 1, seen + inputs.numel()
        bits = loss.item() / np.log(2)
        loss_mean = bits if step == 1 else loss_mean + 0.04 * (bits - loss_mean)
        load_sum += loads
        now = time.monotonic()
        progress = (now - start) / (60 * args.minutes)
        if step % 50 == 0 or progress >= 1:
            print(
                f"step {step} min {(now - start) / 60:.2f} bits {loss_mean:.3f} "
                f"seen {seen / 1e6:.2f}M epoch {windows.epochs} pen {penalty.item():.2f} "
                f"max/min load {skew(load_sum)} ({skew(loads)})",
                flush=True,
            )
            load_sum.zero_()
        if now - saved > 60 * args.save_minutes or progress >= 1:
            saved = now
            facts |= {"minutes": round((now - start) / 60, 2), "steps": step, "tokens_seen": seen}
            facts |= {"finished": progress >= 1, "training_bits": round(loss_mean, 4)}
            partial = args.out / "partial.safetensors"
            save_file({k: v.detach() for k, v in params.items()}, str(partial))
            partial.replace(args.out / "checkpoint.safetensors")
            (args.out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
