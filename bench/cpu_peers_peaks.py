"""What one core can do at most: operations from registers, and bytes read from memory."""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cpp")
UNITS = ("fma_fp32", "dot_bf16", "tile_bf16")  # AVX-512 or AVX2 FMA, AVX-512 BF16, AMX
READ_BYTES = 2**30
BURSTS, BURST_SECONDS = 15, 0.01


class Peaks:
    """Compiles its loops for this machine; where that fails, nothing but torch's sum is left."""

    def __init__(self) -> None:
        self.library = _compile()
        self.buffer = torch.ones(READ_BYTES // 4)

    def flops(self) -> dict[str, float]:
        """FLOP/s of each unit this core has: the best of short bursts."""
        found = {}
        for name in UNITS:
            loop = getattr(self.library, name, None)
            if loop is None:
                continue
            loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_int64]
            if loop(1) > 0:
                found[name] = _best(loop)
        return found

    def read(self) -> float:
        """Bytes a second of one pass over 1 GiB, which leaves nothing else in the caches."""
        start = time.process_time()
        if self.library is None:
            self.buffer.sum()
        else:
            self.library.read_lines(
                ctypes.c_void_p(self.buffer.data_ptr()), self.buffer.nbytes // 64
            )
        return self.buffer.nbytes / (time.process_time() - start)

    def bandwidth(self) -> float:
        return statistics.median(self.read() for _ in range(7))


def _best(loop: Callable[[int], float]) -> float:
    steps = 1000
    while _seconds(loop, steps)[0] < BURST_SECONDS:
        steps *= 2
    return max(work / seconds for seconds, work in (_seconds(loop, steps) for _ in range(BURSTS)))


def _seconds(loop: Callable[[int], float], steps: int) -> tuple[float, float]:
    start = time.process_time()
    work = loop(steps)
    return time.process_time() - start, work


def _compile() -> ctypes.CDLL | None:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peaks.so"
        compiler = os.environ.get("CXX", "c++")
        command = [
            compiler,
            "-O3",
            "-march=native",
            "-shared",
            "-fPIC",
            "-w",
            SOURCE,
            "-o",
            library,
        ]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no peaks: {error}")
            return None
        loaded = ctypes.CDLL(str(library))
    loaded.read_lines.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    loaded.read_lines.restype = ctypes.c_double
    return loaded
