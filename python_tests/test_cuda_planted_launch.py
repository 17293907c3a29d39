"""Bugs planted in what launches the CUDA kernels: wrong grids, blocks, bytes and arguments."""

from __future__ import annotations

import contextlib
import shutil

import pytest
import torch

from capmoe_kernels import reference
from cases import generator, normal
from checks import assert_close_to_truth

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

import cuda_permute
import planted_launch
from cuda_grouped_mlp import Layer
from cuda_on_cpu import Const, runtime
from cuda_on_cpu.errors import BadLaunch, GlobalRace, Misaligned, OutOfBounds
from planted import SEEDS, WRONG, bugs_of, each, each_probe, must_surface


def dispatch(seed: int, rows=21, row_bytes=72, skipped=0) -> None:
    """Tokens that lie ``skipped`` bytes into their memory."""
    tokens = 7
    memory = torch.randint(256, (1024,), generator=generator(2), dtype=torch.uint8)
    x = memory[skipped : skipped + tokens * row_bytes].view(tokens, row_bytes)
    chosen = torch.randint(tokens, (rows,), generator=generator(1), dtype=torch.int32)
    out = torch.full((rows, row_bytes), 77, dtype=torch.uint8)
    sizes = (tokens, rows, row_bytes)
    planted_launch.launch("dispatch", Const(x), Const(chosen), *sizes, out, seed=seed)
    assert torch.equal(out, reference.dispatch(x, chosen))


def dispatch_nothing(seed: int) -> None:
    dispatch(seed, rows=0)


def dispatch_of_a_view(seed: int) -> None:
    """Its place allows narrower words than its rows do."""
    dispatch(seed, row_bytes=64, skipped=8)


def dispatch_too_much(seed: int) -> None:
    """A grid that no device takes: the launcher has to say so."""
    with contextlib.suppress(BadLaunch), runtime.device_memory():
        failure = planted_launch.failure_of("dispatch", None, None, 1, 2**34, 16, None)
        assert failure.startswith("dispatch: ")


def combine(seed: int, tokens=9, columns=8, hidden=24) -> None:
    rows, weights = cuda_permute.pairs(tokens, columns, tokens * columns)
    y = normal((tokens * columns, hidden), torch.bfloat16, seed=5)
    out = torch.full((tokens, hidden), torch.nan, dtype=torch.bfloat16)
    sizes = (tokens, columns, len(y), hidden)
    planted_launch.launch("combine", *map(Const, (y, rows, weights)), *sizes, out, seed=seed)
    truth = reference.combine(y.double(), rows, weights.double())
    assert_close_to_truth(out, truth, reference.combine(y, rows, weights))


def combine_odd_rows(seed: int) -> None:
    combine(seed, hidden=27)


def combine_many_tokens(seed: int) -> None:
    """Rows of no four packs of a warp."""
    combine(seed, tokens=512, columns=1, hidden=264)


def combine_as_many_as_fit(seed: int) -> None:
    """Two tokens of 1,536 candidates in a block: 48 KiB, and there are static bytes beside them."""
    combine(seed, tokens=4, columns=1536)


def mark(seed: int, tokens=70, experts=12) -> None:
    """Every token asks for two experts, of which the first is its top-k."""
    first = torch.randint(experts, (tokens,), generator=generator(3))
    ids = torch.stack([first, (first + 1) % experts], 1).int()
    words = -(-tokens // 32)
    asks, top = torch.full((2, experts, words), -1, dtype=torch.int32)
    counters = torch.full((4,), -1, dtype=torch.int32)
    arguments = (Const(ids), Const(normal((tokens, 2))), tokens, 2, 1, experts)
    planted_launch.launch("mark", *arguments, asks, top, counters, seed=seed)
    for marks, columns in ((asks, 2), (top, 1)):
        asked = torch.zeros(experts, words * 32, dtype=torch.bool)
        asked[ids[:, :columns].T.long(), torch.arange(tokens)] = True
        bits = (marks[:, :, None] >> torch.arange(32)).bitwise_and(1).view(experts, -1)
        assert torch.equal(bits.bool(), asked)
    assert counters.eq(0).all()


def mark_many_experts(seed: int) -> None:
    """One word of each does not fit into 48 KiB."""
    mark(seed, tokens=5, experts=7000)


def gate_wide(seed: int) -> None:
    experts, logits = 300, normal((3, 300))
    ids, weights, scores = (torch.zeros(3, 2, dtype=torch.int32), *torch.zeros(2, 3, 2))
    outputs = (ids, weights, scores)
    planted_launch.launch("gate_wide", Const(logits), 3, experts, 2, *outputs, seed=seed)
    expected = logits.double().softmax(1).topk(2)
    assert torch.equal(ids.long(), expected.indices)
    torch.testing.assert_close(scores.double(), expected.values, rtol=1e-5, atol=0)


def grouped_mlp(seed: int, hidden=40, inner=24) -> None:
    layer = Layer.make(torch.bfloat16, [5, 0, 18], hidden, inner)
    rows = layer.groups.rows()
    hidden_rows, y = (
        torch.full((rows, n), torch.nan, dtype=torch.bfloat16) for n in (inner, hidden)
    )
    inputs = (layer.x, layer.gate_up, layer.down, layer.groups.offsets, layer.groups.counts)
    sizes = (rows, len(layer.groups.counts), hidden, inner)
    planted_launch.launch("grouped_mlp", *map(Const, inputs), *sizes, hidden_rows, y, seed=seed)
    live = layer.groups.live()
    truth, same = layer.reference(torch.float64), layer.reference(torch.bfloat16)
    assert y[~live].isnan().all()
    assert_close_to_truth(y[live], truth[live], same[live])


def grouped_mlp_of_odd_rows(seed: int) -> None:
    grouped_mlp(seed, hidden=36)


DISPATCH = bugs_of(
    "dispatch.cu",
    ("blocks-rounded-down", "ceil_div(rows, kRowsPerBlock)", "rows / kRowsPerBlock", dispatch,
     WRONG),
    ("block-too-large", "<<<blocks, kWarp * kRowsPerBlock,",
     "<<<blocks, kWarp * kRowsPerBlock * 2,", dispatch, BadLaunch),
    ("empty-grid", "if (rows == 0 || row_bytes == 0) return;", "", dispatch_nothing, BadLaunch),
    ("words-too-wide", " | static_cast<uintptr_t>(row_bytes);", ";", dispatch, WRONG),
    ("words-of-one-side", "reinterpret_cast<uintptr_t>(hidden_states) | ", "", dispatch_of_a_view,
     Misaligned),
    ("arguments-swapped", "rows, words,\n", "words, rows,\n", dispatch, (WRONG, OutOfBounds)),
    ("error-not-looked-at", 'check_cuda(cudaGetLastError(), "dispatch");', "", dispatch_too_much,
     WRONG),
)  # fmt: skip

COMBINE = bugs_of(
    "combine.cu",
    ("shared-forgotten", "<<<grid, block, shared,", "<<<grid, block, 0,", combine, OutOfBounds),
    ("shared-of-one-token", "block.y * places * sizeof(Term)", "places * sizeof(Term)", combine,
     OutOfBounds),
    ("static-shared-forgotten", "shared + sizeof(int) * kMaxTokensPerBlock > kDefaultShared",
     "shared > kDefaultShared", combine_as_many_as_fit, BadLaunch),
    ("grid-turned", "(ceil_div(tokens, block.y)), static_cast<unsigned>(slices))",
     "(slices), static_cast<unsigned>(ceil_div(tokens, block.y)))", combine, WRONG),
    ("packs-of-odd-rows", "places % 16 == 0 && hidden % kWidth == 0", "places % 16 == 0",
     combine_odd_rows, (Misaligned, OutOfBounds)),
    ("four-packs-of-any-row", "many && fits(4)", "many", combine_many_tokens,
     (GlobalRace, OutOfBounds)),
)  # fmt: skip

ROUTING = [
    *bugs_of(
        "mark.cu",
        ("no-room-for-top", "num_experts * (marks.top == nullptr ? 1 : 2);", "num_experts;", mark,
         OutOfBounds),
        ("attribute-forgotten", "if (shared > 48 * 1024) allow_all_shared",
         "if (false) allow_all_shared", mark_many_experts, BadLaunch),
    ),
    *bugs_of(
        "gate_wide.cu",
        ("wide-bytes-too-few", "kBytesPerExpert = 6 * 4", "kBytesPerExpert = 4 * 4", gate_wide,
         OutOfBounds),
    ),
]  # fmt: skip

GROUPED = bugs_of(
    "grouped_mlp.cu",
    ("table-forgotten", "config.dynamicSmemBytes = bytes",
     "config.dynamicSmemBytes = Tile::kFixedBytes", grouped_mlp, OutOfBounds),
    ("odd-rows-by-chunks", "product.depth % kChunk == 0 && ", "", grouped_mlp_of_odd_rows,
     (Misaligned, OutOfBounds)),
)  # fmt: skip

BUGS = [*DISPATCH, *COMBINE, *ROUTING, *GROUPED]


@each_probe(BUGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_right_without_a_bug(probe, seed):
    probe(seed)


@each(BUGS)
def test_a_bug_surfaces(bug):
    must_surface(bug)
