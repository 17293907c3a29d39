"""Launches of dispatch and combine for CUDA in the emulator, blocks as their launchers cut them."""

from __future__ import annotations

import re

import torch

from cases import generator, normal
from cuda_on_cpu import Const, emulate
from cuda_sources import compiled, folder, per_sources

WARP, ROWS_PER_BLOCK, THREADS = 32, 8, 256
FLOATS = {torch.float32: "f", torch.bfloat16: "13__nv_bfloat16", torch.float16: "6__half"}
WORDS = {16: "5uint4", 8: "5uint2", 4: "j", 2: "t"}


@per_sources
def instance(op: str, arguments: str):
    """The kernel of csrc/cuda/<op>.cu with these template arguments, as mangled."""
    ptx = compiled(folder() / f"{op}.cu")
    names = re.findall(rf"\.entry (\w+{op}_kernelI{arguments}E\w+)\(", ptx)
    assert len(names) == 1, names
    return emulate(ptx, names[0])


def row_tokens(tokens, rows, seed=0):
    """Tokens of rows, a third of them padding, and indices that no routing of ours would hold."""
    out = torch.randint(tokens, (rows,), generator=generator(seed), dtype=torch.int32)
    out[torch.rand(rows, generator=generator(seed + 1)) < 0.3] = -1
    out[1:3] = torch.tensor([tokens, 2**31 - 1])
    return out


def dispatch(out, x, chosen, word, seed=0):
    """The counts of a launch into ``out``."""
    words, rows = x.shape[1] * x.element_size() // word, len(chosen)
    launch = instance("dispatch", WORDS[word])[-(-rows // ROWS_PER_BLOCK), WARP * ROWS_PER_BLOCK]
    report = launch(Const(x), Const(chosen), x.shape[0], rows, words, out, seed=seed)
    assert report.warnings == []
    return report.counts


def combine(out, y, rows, weights, width, packs=1, seed=0):
    """The counts of a launch into ``out``, blocks as csrc/cuda/combine.cu cuts them."""
    (tokens, columns), hidden = rows.shape, y.shape[1]
    per_token = most = THREADS // 2 if packs == 2 else THREADS
    while per_token > THREADS // 4 and per_token // 2 * width * packs >= hidden:
        per_token //= 2
    together, reach = most // per_token, per_token * width * packs
    grid = (-(-tokens // together), -(-hidden // reach) if packs <= 2 else 1)
    kernel = instance("combine", f"{FLOATS[y.dtype]}Li{width}ELi{packs}E")
    places = columns + columns % 2
    launch = kernel[grid, (per_token, together), together * places * 8]
    sizes = (tokens, columns, places, y.shape[0], hidden)
    report = launch(Const(y), Const(rows), Const(weights), *sizes, out, seed=seed)
    assert report.warnings == []
    return report.counts


def pairs(tokens, columns, rows, seed=0):
    """(rows [T, K], weights [T, K]): every row at most once, dropped ones, a token with none."""
    order = torch.randperm(max(rows, tokens * columns), generator=generator(seed))
    chosen = order[: tokens * columns].reshape(tokens, columns)
    chosen = torch.where(chosen < rows, chosen, -1).int()
    chosen[tokens // 2] = -1
    return chosen, normal((tokens, columns), seed=seed + 1)


def in_order(y, rows, weights):
    """The sums by one float32 FMA after the other, whose products are exact in float64."""
    out = torch.zeros(len(rows), y.shape[1])
    for row, weight in zip(rows.T.long(), weights.T, strict=True):
        more = (weight[:, None].double() * y[row].double() + out.double()).float()
        out = torch.where(row[:, None] >= 0, more, out)
    return out.to(y.dtype)
