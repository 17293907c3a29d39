"""What a capacity gains on two processes, measured here. ``python -m bench.expert_parallel``.

Two processes, gloo, a core and a thread each. A step is the whole MoE layer, from router logits to
the sum, on both ranks, and takes as long as the slower one; medians, settings in turn. The bound is
what the busiest rank's rows allow (docs/straggler.md); the model is the cost model's step, whose
costs are measured in the same run. Answers are checked first, against one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing.connection
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from capmoe_kernels.evaluate.machine import describe, versions

from .ep_simulation import print_markdown
from .expert_parallel_cases import save_case, shipped
from .expert_parallel_rank import run_rank
from .expert_parallel_tables import HEADER, PHASE_HEADER, results

RANKS = 2
_MINUTES = 4.5


def measure(tokens: int, seconds: float, small: bool) -> list[dict[str, Any]]:
    """Every case's results, from processes that are gone afterwards."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        save_case(shipped(RANKS, tokens), f"{folder}/shipped.pt")
        processes = [
            context.Process(target=run_rank, args=(rank, folder, seconds, small))
            for rank in range(RANKS)
        ]
        try:
            for process in processes:
                process.start()
            _wait(processes)
            ranks = [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(RANKS)]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
    return [results(case) for case in zip(*ranks, strict=True)]


def _wait(processes: list[Any]) -> None:
    """Until all are done; where one fails, the others are not waited for."""
    deadline = time.monotonic() + 60 * _MINUTES
    while any(process.is_alive() for process in processes):
        alive = [process.sentinel for process in processes if process.is_alive()]
        ended = multiprocessing.connection.wait(alive, deadline - time.monotonic())
        if not ended or any(process.exitcode for process in processes):
            break
    codes = [process.exitcode for process in processes]
    if codes != [0] * len(codes):
        raise SystemExit(f"the ranks ended with {codes} (None: too slow, or no longer waited for)")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="of each rank")
    parser.add_argument("--seconds", type=float, default=16.0, help="of samples per case")
    parser.add_argument("--small", action="store_true", help="does everything run? no numbers")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    found = measure(arguments.tokens, arguments.seconds, arguments.small)
    for case in found:
        print_markdown(f"{case['case']}", [HEADER, *case["table"]])
        print_markdown("where the time goes, ms", [PHASE_HEADER, *case["phase_table"]])
    about = {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "machine": describe(),
        "versions": versions(),
        "tokens": arguments.tokens,
    }
    print(
        f"\n{about['date']}, {about['machine']['cpu']}, torch {torch.__version__}, gloo, {RANKS}"
        f" processes of one core, {arguments.tokens} tokens each."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
