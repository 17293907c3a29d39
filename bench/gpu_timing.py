"""Device time: CUDA graphs, medians, buffers that rotate beyond the cache."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import torch

from .gpu_roofline import Limits

Call = Callable[[], object]


def events_ms(run: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


# A graph shorter than this would be timed with what it costs to launch it, some microseconds.
LONG_US = 500.0


def median_us(run: Call, calls: int, seconds: float) -> float:
    """Of one call, where ``run`` makes several."""
    once = min(events_ms(run) for _ in range(3))
    repeats = max(5, min(100, int(1e3 * seconds / max(once, 1e-3))))
    return 1e3 * statistics.median(events_ms(run) for _ in range(repeats)) / calls


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def graph_us(calls: Sequence[Call], seconds: float) -> float:
    """Median microseconds of a call; the calls, in turn and again and again, are one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = captured(calls)
    graph.replay()
    rounds = math.ceil(LONG_US / (1e3 * min(events_ms(graph.replay) for _ in range(3))))
    if rounds > 1:
        calls = list(calls) * rounds
        graph = captured(calls)
    return median_us(graph.replay, len(calls), seconds)


def eager_us(calls: Sequence[Call], seconds: float) -> float:
    """The same for calls that wait for the device and so cannot be captured: launches included."""

    def run() -> None:
        for call in calls:
            call()

    return median_us(run, len(calls), seconds)


def copies_beyond_cache(bytes_per_call: float, most: int = 16) -> int:
    """How many sets of buffers in turn make each call find a cold cache."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    return max(1, min(most, -(-3 * cache // max(int(bytes_per_call), 1))))


def measure_limits() -> Limits:
    """What a copy or a sum, whichever is faster, and a large product reach on this GPU."""
    source = torch.zeros(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / graph_us([lambda: target.copy_(source)], 0.2)
    read = source.nbytes / graph_us([lambda: source.sum()], 0.2)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    product_us = graph_us([lambda: a @ b], 0.3)
    return Limits(1e6 * max(copy, read), 1e6 * 2 * 8192**3 / product_us)
