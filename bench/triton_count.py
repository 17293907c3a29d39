"""Runs Triton's and the CUDA operators in the emulator: what triton_counts.json is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .count_inputs import Routed, experts_call, moving_calls
from .gpu_counts import LEFT_OUT, key
from .triton_counts import Row

sys.path.insert(0, str(Path(__file__).parent.parent / "python_tests"))
from cuda_on_cpu.runtime import recording
from cuda_on_cpu.runtime.operators import UseEmulatedCuda
from cuda_on_cpu.runtime.record import LaunchRecord
from cuda_on_cpu.runtime.triton_operators import UseEmulatedTriton

FACTORS = (None, 1.0)
BACKENDS = (UseEmulatedTriton, UseEmulatedCuda)  # in the order of a row's pairs
ROUTING = ("gate", "select", "route")  # what the names of the layer's routing kernels begin with
COUNTS = {
    "ptx": ("warp_instructions",),
    "bytes": ("global_load_bytes", "global_store_bytes"),
    "sectors": ("global_load_sectors", "global_store_sectors"),
}
Launches = list[LaunchRecord]


def launched(call: Callable[[], Any]) -> list[Launches]:
    """By Triton, and by CUDA."""
    out = []
    for mode in BACKENDS:
        with mode(), recording(arch="sm_80") as record:
            call()
        out.append(record.launches)
    return out


def row_of(both: list[Launches]) -> Row:
    row = {"launches": [len(launches) for launches in both]}
    for name, parts in COUNTS.items():
        row[name] = [sum(run.counts[p] for run in launches for p in parts) for launches in both]
    return row


def routing_rows(model: str, tokens: int, factor: float | None) -> dict[str, Row]:
    """gate and select as ops; what routes in the layer; and how many launches that one has."""
    routed, out = Routed(model, tokens, factor), {}
    ids, weights, _ = routed.gate()
    if factor is None:  # of which the gate does not know
        out["gate"] = row_of(launched(routed.gate))
    out["select"] = row_of(launched(lambda: routed.select(ids, weights)))
    layers = launched(routed.layer)
    route = [[run for run in layer if run.name.startswith(ROUTING)] for layer in layers]
    out["route"] = row_of(route)
    out["layer"] = {"launches": row_of(layers)["launches"]}
    return {key(model, tokens, op, factor): row for op, row in out.items()}


def count_rows(model: str, tokens: int) -> dict[str, Row]:
    """All that is counted of one model with so many tokens."""
    out: dict[str, Row] = {}
    for factor in FACTORS:
        out |= routing_rows(model, tokens, factor)
    if (model, tokens, "dispatch") not in LEFT_OUT:
        for op, call in moving_calls(model, tokens).items():
            out[key(model, tokens, op, None)] = row_of(launched(call))
    out[key(model, tokens, "grouped_mlp", None)] = row_of(launched(experts_call(model, tokens)))
    return out
