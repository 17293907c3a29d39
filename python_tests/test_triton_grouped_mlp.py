"""The grouped MLP of Triton, executed without a GPU: values, memory, tiles, and their tuning."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from capmoe_kernels import reference
from cases import normal
from checks import assert_close_to_truth, same_bits
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime.triton_operators import UseEmulatedTriton, why_absent

if why_absent() is not None:
    pytest.skip(f"triton-emulated: {why_absent()}", allow_module_level=True)

from capmoe_kernels.triton_kernels import tuning
from capmoe_kernels.triton_kernels.tiles import Tile, known_tile, table_of
from cuda_on_cpu.runtime.triton_launch import EmulatedDriver, triton_emulation

ARCHS = ["sm_80", "sm_90"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GATED = ["silu", "gelu", "gelu_tanh", "swigluoai"]
PLAIN = [f"{name}_no_mul" for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")]
archs = pytest.mark.parametrize("arch", ARCHS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
pytestmark = pytest.mark.usefixtures("poison")


@contextmanager
def emulated(arch="sm_80", seed=0):
    """Every op runs its Triton kernels, of which the emulator has nothing to say."""
    with UseEmulatedTriton(), runtime.recording(arch=arch, seed=seed) as record:
        yield record
    assert record.warnings == []


@dataclass
class Layer:
    """Experts and their rows, each expert's from a multiple of four on."""

    x: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    offsets: torch.Tensor
    counts: torch.Tensor
    row_tokens: torch.Tensor | None
    activation: str
    layout: str

    @classmethod
    def make(
        cls,
        dtype,
        counts,
        hidden,
        inner,
        activation="silu",
        layout="concat",
        bias=False,
        gather=False,
    ):
        """Seven tokens where ``gather``. Rows of no expert are NaN, or ask for token -1."""
        padded = torch.tensor([-(-n // 4) * 4 for n in counts])
        offsets = torch.nn.functional.pad(padded.cumsum(0), (1, 0)).int()
        experts, rows = len(counts), int(offsets[-1])
        width = inner if activation.endswith("_no_mul") else 2 * inner
        live = live_rows(offsets, counts, rows)
        if gather:
            x = normal((7, hidden), dtype)
            row_tokens = (torch.arange(rows, dtype=torch.int32) * 5 + 2) % 7
            row_tokens[~live] = -1
        else:
            x, row_tokens = normal((rows, hidden), dtype), None
            x[~live] = torch.nan
        return cls(
            x,
            normal((experts, width, hidden), dtype, scale=hidden**-0.5),
            normal((experts, hidden, inner), dtype, scale=inner**-0.5),
            normal((experts, width), dtype) if bias else None,
            normal((experts, hidden), dtype) if bias else None,
            offsets,
            torch.tensor(counts, dtype=torch.int32),
            row_tokens,
            activation,
            layout,
        )

    def live(self):
        rows = len(self.x) if self.row_tokens is None else len(self.row_tokens)
        return live_rows(self.offsets, self.counts.tolist(), rows)

    def tensors(self, dtype):
        floats = (self.x, self.gate_up, self.down, self.gate_up_bias, self.down_bias)
        floats = (None if tensor is None else tensor.to(dtype) for tensor in floats)
        rest = (self.offsets, self.counts, self.row_tokens, self.activation, self.layout)
        return (*floats, *rest)

    def run(self, arch="sm_80", seed=0):
        with emulated(arch, seed):
            return torch.ops.capmoe.grouped_mlp(*self.tensors(self.x.dtype))

    def check(self, arch="sm_80", seed=0):
        """Live rows are right, others untouched. -> run()"""
        y, live = self.run(arch, seed), self.live()
        assert y[~live].isnan().all()
        truth = reference.grouped_mlp(*self.tensors(torch.float64))
        same = reference.grouped_mlp(*self.tensors(self.x.dtype))
        assert_close_to_truth(y[live], truth[live], same[live])
        return y


def live_rows(offsets, counts, rows):
    mask = torch.zeros(rows, dtype=torch.bool)
    for start, count in zip(offsets.tolist(), counts, strict=False):
        mask[start : start + count] = True
    return mask


@pytest.fixture
def use_tiles(monkeypatch):
    """A function that makes every up product of the test take one tile, and every down another."""

    def use(up, down):
        monkeypatch.setattr(tuning, "known_tile", lambda *args: down if args[2] == "down" else up)

    return use


every_tile = pytest.mark.parametrize(
    ("arch", "dtype", "start"),
    [
        (arch, dtype, start)
        for arch in ARCHS
        for dtype in DTYPES[:2]
        for start in table_of(arch, dtype)
    ],
)


@pytest.mark.parametrize(
    ("arch", "dtype"), [*(("sm_80", dtype) for dtype in DTYPES), ("sm_90", torch.bfloat16)]
)
def test_activations(dtype, arch):
    """Every activation, with and without biases and a gather, in two schedules."""
    for i, activation in enumerate(GATED + PLAIN):
        options = {"bias": i % 2 == 0, "gather": i in (1, 2, 6)}
        layout = "interleaved" if activation in ("swigluoai", "gelu_tanh") else "concat"
        layer = Layer.make(dtype, [3, 0, 20, 0, 1, 16], 48, 32, activation, layout, **options)
        layer.check(arch, seed=3 * (i % 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # float16 overflows
@pytest.mark.parametrize("activation", GATED + PLAIN)
def test_activations_far_out(dtype, activation):
    """Projections to about +-100: clamps, tails, overflow of exp."""
    layer = Layer.make(dtype, [9, 4], 48, 32, activation)
    layer.gate_up *= 30
    layer.check()


@every_tile
def test_tiles(use_tiles, arch, dtype, start):
    """Whole tiles and parts, sizes of whole steps of k and not, in two schedules."""
    up, down = table_of(arch, dtype)[start]
    use_tiles(up, down)
    counts = [5, 0, down.rows + 2, 0]
    for seed, sizes in [(0, (2 * up.depth, 48)), (3, (48, up.columns + 16))]:
        Layer.make(dtype, counts, *sizes, bias=seed == 0, gather=seed == 3).check(arch, seed)


@dtypes
@pytest.mark.parametrize(
    ("hidden", "inner"), [(16, 80), (80, 16), (40, 136), (100, 33), (33, 100), (1, 1), (1, 16)]
)
def test_tails(dtype, hidden, inner):
    """Sizes that are no whole tile, nor, for the most, known to be whole vectors."""
    for layout in ("concat", "interleaved"):
        Layer.make(dtype, [5, 0, 18], hidden, inner, "silu", layout, layout == "concat").check()


@dtypes
def test_interleaved_is_concat_shuffled(dtype):
    concat = Layer.make(dtype, [5, 0, 18], 48, 32, bias=True)
    order = torch.arange(64).view(2, 32).t().reshape(-1)
    interleaved = replace(
        concat,
        gate_up=concat.gate_up[:, order],
        gate_up_bias=concat.gate_up_bias[:, order],
        layout="interleaved",
    )
    live = concat.live()
    assert same_bits(interleaved.run()[live], concat.run()[live])


@archs
@dtypes
def test_bits_depend_on_nothing_else(dtype, arch):
    """Schedules, a copy for the gather, strides, neighbours with NaN: a row's bits are its own."""
    layer = Layer.make(dtype, [9, 0, 21], 80, 48, gather=True)
    live, first = layer.live(), layer.check(arch)
    assert same_bits(layer.run(arch, seed=3)[live], first[live])
    copied = replace(layer, x=layer.x[layer.row_tokens.clamp(min=0).long()], row_tokens=None)
    assert same_bits(copied.run(arch)[live], first[live])
    strided = replace(
        layer, x=layer.x.t().contiguous().t(), gate_up=layer.gate_up.mT.contiguous().mT
    )
    assert same_bits(strided.run(arch)[live], first[live])
    copied.x[4] = torch.nan
    copied.gate_up[1] = torch.nan
    spoilt = copied.run(arch)
    assert spoilt[4].isnan().all()
    live[4] = False
    assert same_bits(spoilt[live], first[live])


@pytest.mark.parametrize(
    "counts", [[0, 0, 0], [0, 0, 150, 0], [1], [64, 0, 0], [0, 0, 129], [7, 530, 3], [2100]]
)
def test_counts(use_tiles, counts):
    """No rows, one expert with all, whole tiles and one more, more than go together."""
    use_tiles(*[Tile(128, 32, 32, 4, 3)] * 2)
    Layer.make(torch.bfloat16, counts, 16, 48).check()


@pytest.mark.parametrize("experts", [60, 127, 129, 300, 4096])
def test_many_experts(experts):
    """No power of two, more experts than threads: a few with rows, at both ends and between."""
    counts = [0] * experts
    for e in {0, 3, experts // 2, experts - 2, experts - 1}:
        counts[e] = 1 + e % 19
    Layer.make(torch.float16, counts, 16, 16).check()


@archs
@dtypes
def test_long_sums(dtype, arch):
    """A float32 chain of 4096 would be further from the truth than the rule allows."""
    Layer.make(dtype, [5], 4096, 48).check(arch)


def test_identity_in_float32_is_exact():
    eye = torch.eye(48).expand(2, 48, 48)
    layer = Layer.make(torch.float32, [9, 4], 48, 48, "relu_no_mul")
    layer = replace(layer, x=layer.x.abs(), gate_up=eye, down=eye)
    live = layer.live()
    assert layer.run()[live].equal(layer.x[live])


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("offsets", "counts"),
    [
        ([0, 8, 16], [HUGE, 3]),
        ([-4, 30, 16], [9, 9]),
        ([HUGE, -(2**31), 7], [4, 4]),
        ([0, 8, 16], [-3, -HUGE]),
        ([0, 8, 16], [-1, 8]),
    ],
)
def test_rows_that_are_none(offsets, counts):
    """Offsets and counts that select would not make reach no memory but the rows' own."""
    layer = Layer.make(torch.bfloat16, [16, 16], 16, 16, gather=True)
    layer.offsets, layer.counts = torch.tensor(offsets).int(), torch.tensor(counts).int()
    layer.row_tokens[::3] = torch.tensor([7, HUGE, -5, -1]).int().repeat(3)[:11]
    with emulated():
        out = torch.ops.capmoe.grouped_mlp(*layer.tensors(torch.bfloat16))
    assert out.shape == (32, 16)


def test_two_launches():
    with emulated() as record:
        torch.ops.capmoe.grouped_mlp(*Layer.make(torch.bfloat16, [9], 16, 16).tensors(torch.half))
    assert record.names == ["grouped_gemm_kernel"] * 2


def products(arch, rows_per_expert):
    """The classes of both products of a small layer."""
    with triton_emulation(arch=arch):
        up = tuning.Shape(torch.bfloat16, "gated", 48, 64, rows_per_expert)
        down = tuning.Shape(torch.bfloat16, "down", 64, 48, rows_per_expert)
    return up.name, down.name


def test_a_file_of_tiles(tmp_path, monkeypatch):
    """A file's tile goes before the table's, for its class alone."""
    layer = Layer.make(torch.bfloat16, [9, 4], 64, 48)
    path = tmp_path / "tiles.json"
    up, down = products("sm_80", 8)
    path.write_text(json.dumps({up: [32, 16, 16, 2, 2], down: [16, 32, 16, 1, 2]}))
    monkeypatch.setenv("CAPMOE_TRITON_TILES", str(path))
    for arch, threads in [("sm_80", [64, 32]), ("sm_90", [128, 128])]:
        with emulated(arch) as record:
            torch.ops.capmoe.grouped_mlp(*layer.tensors(torch.bfloat16))
        assert [launch.block[0] for launch in record.launches] == threads
    layer.check()


def test_tuning(tmp_path, monkeypatch):
    """The candidate of the fewest instructions, since nothing here is a time; once, and kept."""
    timed = []

    def instructions(call, quantiles):
        with runtime.recording() as record:
            call()
        timed.append(record.counts["warp_instructions"])
        return [timed[-1]] * len(quantiles)

    monkeypatch.setattr(EmulatedDriver, "get_benchmarker", lambda self: instructions)
    monkeypatch.setattr(
        tuning, "candidates", lambda shape: [Tile(16, 32, 16, n, 2) for n in (1, 4)]
    )
    path = tmp_path / "tiles.json"
    monkeypatch.setenv("CAPMOE_TRITON_TILES", str(path))
    monkeypatch.setenv("CAPMOE_TRITON_AUTOTUNE", "1")
    layer = Layer.make(torch.bfloat16, [9, 4], 64, 48)
    layer.check()
    assert len(timed) == 4
    assert timed[0] != timed[1]
    expected = [1 if a < b else 4 for a, b in (timed[:2], timed[2:])]
    written = json.loads(path.read_text())
    assert written.keys() == set(products("sm_80", 8))
    assert [written[name][3] for name in products("sm_80", 8)] == expected
    layer.check()
    assert len(timed) == 4


@archs
@dtypes
def test_candidates(arch, dtype):
    """The table's tile is among them, and all are different."""
    with triton_emulation(arch=arch):
        for kind in ("gated", "plain", "down"):
            for rows in (1, 40, 4000):
                found = tuning.candidates(tuning.Shape(dtype, kind, 1024, 2048, rows))
                assert known_tile(arch, dtype, kind, rows) in found
                assert len(found) == len(set(found)) > 2
