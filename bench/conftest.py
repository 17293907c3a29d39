"""Timing for ``pytest bench``: one thread, the answer checked first, backends side by side."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels


def pytest_configure(config):
    config.option.benchmark_sort = "name"


def pytest_report_header(config):
    serving = ", ".join(f"{d}: {b}" for d, b in capmoe_kernels.backends().serving.items())
    return f"torch {torch.__version__}, 1 thread, float32 logits, bfloat16 weights; {serving}"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measure(benchmark):
    """Time ``op`` on ``arguments``: one table per group, one row per backend."""

    def run(op, arguments, group):
        benchmark.group = group
        benchmark.pedantic(op, arguments, rounds=15, warmup_rounds=2)

    return run
