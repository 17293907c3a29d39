"""Triton's kernels beside the hand-written ones, in counts: ``python -m bench.triton_counts``.

Prints triton_counts.json: launches, PTX instructions of a warp, bytes and 32-byte sectors of global
memory, of both on sm_80. Counts, not times: both are executed in the emulator, on the same inputs,
those of gpu_counts. ``--update`` counts again; that needs nvcc and Triton, and no GPU.

``gate`` and ``select`` are the ops. ``route`` is what the layer routes with: Triton's gate and
select beside either the CUDA gate and select, or, with few tokens, one kernel for both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .gpu_counts import LEFT_OUT, TOKENS, parts
from .gpu_roofline import SHAPES

TABLE = Path(__file__).with_suffix(".json")
OPS = ("gate", "select", "route", "dispatch", "grouped_mlp", "combine", "layer")
MUCH = 1.5  # times what the hand-written kernels need

Row = dict[str, list[int]]  # of "launches", "ptx", "bytes" and "sectors": Triton's and CUDA's


def ratio(row: Row, kind: str) -> float:
    triton, cuda = row[kind]
    return triton / cuda


def ratios(table: dict[str, Row], op: str, tokens: int, kind: str) -> list[float]:
    """Of all models, and both factors."""
    rows = (row for name, row in table.items() if parts(name)[1:3] == (tokens, op))
    return [ratio(row, kind) for row in rows if kind in row]


def shown(found: list[float]) -> str:
    """From the least ratio to the greatest; bold where Triton needs much more."""
    least, most = (f"{number:.1f}" for number in (min(found), max(found)))
    text = least if least == most else f"{least} - {most}"
    return f"**{text}**" if max(found) > MUCH else text


def summary(table: dict[str, Row]) -> list[str]:
    """In Markdown, for docs/triton.md: by op and tokens, over all models and factors."""
    heads = [f"{kind}, T = {tokens:,}" for kind in ("PTX", "sectors") for tokens in TOKENS]
    out = [f"| op | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for op in OPS:
        found = [ratios(table, op, t, kind) for kind in ("ptx", "sectors") for t in TOKENS]
        if all(found):
            out.append(f"| {op} | {' | '.join(map(shown, found))} |")
    return out


def regressions(table: dict[str, Row], now: dict[str, Row], allowed: float = 0.02) -> list[str]:
    """Where Triton has come to need more than ``allowed`` beyond the table, in words."""
    out = []
    for name, row in now.items():
        for kind, (needs, _) in row.items():
            before = table[name][kind][0]
            if needs > (1 + allowed) * before:
                out.append(f"{name}: {kind} {needs:,}, was {before:,}")
    return out


def as_table(table: dict[str, Row]) -> Table:
    title = "Triton / CUDA on sm_80 (emulated; counts, not times)"
    out = Table(title=title, caption="x: Triton's over CUDA's")
    for column in ("model", "T", "op", "C", "launches", "PTX", "x", "sectors", "x", "bytes", "x"):
        out.add_column(column, justify="left" if column in ("model", "op") else "right")
    last = None
    for name, row in table.items():
        model, tokens, op, factor = parts(name)
        if last not in (None, (model, tokens)):
            out.add_section()
        last = model, tokens
        cells = []
        for kind in ("ptx", "sectors", "bytes"):
            if kind in row:
                cells += ["{:,} / {:,}".format(*row[kind]), f"{ratio(row, kind):.2f}"]
        limit = "" if factor is None else f"x{factor:g}"
        launches = "{} / {}".format(*row["launches"])
        out.add_row(model, str(tokens), op, limit, launches, *cells)
    return out


def print_counts(console: Console) -> None:
    rows = json.loads(TABLE.read_text())["rows"]
    console.print(as_table(rows))
    for line in summary(rows):
        print(line)
    left_out = ", ".join(f"{op} of {model} at T={tokens}" for model, tokens, op in sorted(LEFT_OUT))
    console.print(f"left out for memory: {left_out}")


def place(name: str) -> tuple[int, int, int, float]:
    """The order of rows."""
    model, tokens, op, factor = parts(name)
    return list(SHAPES).index(model), tokens, OPS.index(op), factor or 0.0


def update(models: list[str], all_tokens: list[int]) -> None:
    import triton

    from .gpu_static import nvcc_release
    from .triton_count import count_rows

    rows = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}
    for tokens in all_tokens:
        for model in models:
            began = time.monotonic()
            rows = {name: row for name, row in rows.items() if parts(name)[:2] != (model, tokens)}
            rows |= count_rows(model, tokens)
            print(f"{model} T={tokens}: {time.monotonic() - began:.0f} s", flush=True)
            ordered = {name: rows[name] for name in sorted(rows, key=place)}
            versions = {"nvcc": nvcc_release(), "triton": triton.__version__}
            lines = ",\n".join(f"  {json.dumps(n)}: {json.dumps(r)}" for n, r in ordered.items())
            head = json.dumps(versions)[1:-1]
            TABLE.write_text(f'{{{head}, "rows": {{\n{lines}\n}}}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"count again, into {TABLE.name}")
    parser.add_argument("--models", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    arguments = parser.parse_args()
    if arguments.update:
        update(arguments.models, arguments.tokens)
    print_counts(Console(width=150))


if __name__ == "__main__":
    main()
