"""How fast the emulator is, of which a test's patience depends: ``python -m cuda_on_cpu.speed``."""

from __future__ import annotations

import time
from functools import partial

from . import nvcc_kernels as nk

RUNS = {
    "grouped_gemm": partial(nk.grouped_gemm, counts=(64,) * 8, columns=128, depth=128),
    "topk_gate": partial(nk.topk_gate, tokens=256, experts=64, top_k=8),
    "slots_by_shuffle": partial(nk.slots, tokens=16_384, experts=64),
    "scan_rows": partial(nk.scan_rows, rows=16, columns=4000),
}


class Timed(nk.Launch):
    """A launch whose processor time is kept, without parsing and lowering."""

    def __call__(self, ptx, name, grid, block, shared, *args):
        kernel = nk.emulate(ptx, name)
        start = time.process_time()
        report = kernel[grid, block, shared](*args, seed=self.seed)
        self.seconds = time.process_time() - start
        return report


def main() -> None:
    for name, run in RUNS.items():
        best = float("inf")
        for _ in range(5):
            launch = Timed()
            count = run(nk.compiled(nk.source_of(run)), launch).report.counts["warp_instructions"]
            best = min(best, launch.seconds)
        print(f"{name:18} {count:9,} warp instructions, {count / best / 1e6:5.2f} million a second")


if __name__ == "__main__":
    main()
