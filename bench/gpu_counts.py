"""What the CUDA kernels execute, counted in the emulator: ``python -m bench.gpu_counts``.

Prints gpu_counts.json: warp instructions per token, pair or tensor-core instruction, of PTX and as
estimated of SASS, and 32-byte sectors over those of the bytes that must move, beside their targets.
Counts, not times. ``--update`` counts again; that needs nvcc, ptxas and nvdisasm, and no GPU.

The layer's own gate and select, or route, are counted. The experts are two of the model's, each
with the model's mean number of rows, H=F=512: the full size would take hours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .gpu_roofline import SHAPES
from .gpu_targets import SECTORS, target

TABLE = Path(__file__).with_suffix(".json")
TOKENS = (1, 64, 1024, 4096)
# A row of 470 MB for each of the 32,768 pairs, and its copy, do not fit.
LEFT_OUT = {("dsv3", 4096, "dispatch"), ("dsv3", 4096, "combine")}

Row = dict[str, float]  # "ptx" and "sass" per what "per" says, "sectors" over the minimum


def key(model: str, tokens: int, op: str, factor: float | None) -> str:
    bound = "" if factor is None else f" factor={factor:g}"
    return f"{model} T={tokens} {op}{bound}"


def parts(name: str) -> tuple[str, int, str, float | None]:
    """Of a key: its model, tokens, op and capacity factor."""
    model, tokens, op, *factor = name.split()
    return model, int(tokens[2:]), op, float(factor[0].split("=")[1]) if factor else None


def missed(table: dict[str, Row]) -> list[str]:
    """Targets that are not met, in words."""
    out = []
    for name, row in table.items():
        model, tokens, op, factor = parts(name)
        bound = target(op, SHAPES[model], tokens, factor)
        if bound is not None and row["sass"] > bound:
            out.append(f"{name}: {row['sass']:.1f} instructions, not {bound:.4g}")
        if row.get("sectors", 0) > SECTORS.get(op, float("inf")):
            out.append(f"{name}: {row['sectors']:.2f} of the sectors, not {SECTORS[op]}")
    return out


def regressions(table: dict[str, Row], now: dict[str, Row], allowed: float = 0.02) -> list[str]:
    """What has come to need more than ``allowed`` beyond the table, in words."""
    out = []
    for name, row in now.items():
        for kind in ("ptx", "sectors"):
            if kind in row and row[kind] > (1 + allowed) * table[name][kind]:
                out.append(f"{name}: {kind} {row[kind]:.2f}, was {table[name][kind]:.2f}")
    return out


def as_table(table: dict[str, Row]) -> Table:
    title = "executed by the kernels compiled for sm_80 (emulated; counts, not times)"
    out = Table(title=title, caption="SASS is estimated; the targets are for it")
    columns = ("model", "T", "op", "C", "PTX", "SASS", "target", "per", "sectors", "at most")
    for column in columns:
        out.add_column(column, justify="left" if column in ("model", "op", "per") else "right")
    last = None
    for name, row in table.items():
        model, tokens, op, factor = parts(name)
        if last not in (None, (model, tokens)):
            out.add_section()
        last = model, tokens
        bound = target(op, SHAPES[model], tokens, factor)
        sectors = f"{row['sectors']:.2f}" if "sectors" in row else ""
        shown = (f"{row['ptx']:.1f}", f"{row['sass']:.1f}", "" if bound is None else f"{bound:.4g}")
        most = f"{SECTORS[op]:g}" if op in SECTORS and sectors else ""
        limit = "" if factor is None else f"x{factor:g}"
        out.add_row(model, str(tokens), op, limit, *shown, str(row["per"]), sectors, most)
    return out


def print_counts(console: Console) -> None:
    rows = json.loads(TABLE.read_text())["rows"]
    console.print(as_table(rows))
    for line in missed(rows):
        console.print(f"missed: {line}", markup=False, highlight=False)
    left_out = ", ".join(f"{op} of {model} at T={tokens}" for model, tokens, op in sorted(LEFT_OUT))
    console.print(f"left out for memory: {left_out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"count again, into {TABLE.name}")
    parser.add_argument("--models", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    arguments = parser.parse_args()
    if arguments.update:
        from .gpu_count import count_rows
        from .gpu_static import nvcc_release

        old = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}
        for model in arguments.models:
            for tokens in arguments.tokens:
                for name in [n for n in old if parts(n)[:2] == (model, tokens)]:
                    del old[name]
                old |= count_rows(model, tokens, sass=True)
                print(model, tokens, flush=True)
                order = sorted(old, key=lambda n: (list(SHAPES).index(parts(n)[0]), parts(n)[1]))
                written = {"nvcc": nvcc_release(), "rows": {name: old[name] for name in order}}
                TABLE.write_text(json.dumps(written, indent=1) + "\n")
    print_counts(Console(width=110))


if __name__ == "__main__":
    main()
