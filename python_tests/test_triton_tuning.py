"""Tiles that a user has measured: the file they are kept in, and how they are measured."""

from __future__ import annotations

import json

import pytest
import torch

from capmoe_kernels.triton_kernels import tuning
from capmoe_kernels.triton_kernels.tiles import Tile, known_tile
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime.triton_launch import EmulatedDriver, triton_emulation
from triton_grouped_mlp import Layer, archs, dtypes, emulated  # skips where there is no Triton

pytestmark = pytest.mark.usefixtures("poison")


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
            torch.ops.capmoe.grouped_mlp(*layer.arguments(torch.bfloat16))
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
