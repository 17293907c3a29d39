"""The compiled CUDA kernels against the table in bench/, without a GPU; what floors are."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from bench import gpu_static
from bench.gpu_roofline import GPUS, SHAPES, busy_experts, experts_work
from bench.gpu_static import Kernel, complaints


def test_every_kernel_is_as_good_as_the_table():
    module = gpu_static.compiled_module()
    if module is None:
        pytest.skip("capmoe_kernels._cuda was not built")
    if gpu_static.cuobjdump() is None:
        pytest.skip("there is no cuobjdump")
    kernels = gpu_static.read_kernels(module)
    assert {kernel.name.split("<")[0] for kernel in kernels} >= {"combine_kernel", "gate_kernel"}
    table = json.loads(gpu_static.TABLE.read_text())
    assert complaints(kernels, table, table["nvcc"] == gpu_static.nvcc_release()) == []


TABLE = {
    "sm_80": {"f<int>": {"registers": 40, "shared": 0, "hmma": 64, "ldsm": 16, "loads_128": 4}}
}
GOOD = Kernel("sm_80", "f<int>", 40, 0, 0, Counter(hmma=64, ldsm=16, loads_128=2))


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (GOOD._replace(registers=41), "41 registers, not 40"),
        (GOOD._replace(stack=8), "8 bytes of stack"),
        (GOOD._replace(instructions=GOOD.instructions + Counter(local=2)), "2 accesses"),
        (GOOD._replace(instructions=Counter(hmma=64, ldsm=16)), "lost its loads_128"),
        (
            GOOD._replace(instructions=Counter(hmma=64, ldsm=24, loads_128=2)),
            "loads more per product",
        ),
        (GOOD._replace(name="f<long>"), "not in gpu_static.json"),
        (GOOD._replace(arch="sm_90a"), "not in gpu_static.json"),
    ],
)
def test_what_got_worse_is_said(kernel, words):
    assert complaints([GOOD._replace(registers=39), GOOD], TABLE) == []
    (complaint,) = complaints([kernel], TABLE)
    assert words in complaint
    assert len(complaints([kernel], TABLE, registers=False)) == ("registers" not in words)


@pytest.mark.parametrize(
    ("model", "tokens", "microseconds"),
    [("olmoe", 1, 33.6), ("olmoe", 1024, 304.8), ("mixtral", 4096, 3607.8), ("dsv3", 64, 6537.8)],
)
def test_floors_on_an_h100(model, tokens, microseconds):
    """Worked out by hand: weights of busy experts at 3.0 TB/s, or products at 800 TFLOP/s."""
    shape = SHAPES[model]
    work = experts_work(shape, tokens, tokens * shape.top_k, busy_experts(shape, tokens))
    assert work.floor_us(GPUS["H100"]) == pytest.approx(microseconds, rel=0.005)
