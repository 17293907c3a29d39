"""What capacity costs on the shipped model, method by method. ``python -m bench.quality``.

Bits per byte of every method of the paper (arXiv 2503.05066) and of the switches around it, on
held-out files, with intervals over files of the change to the same files without a bound; and the
same after the model's routing is converted to weights that sum to one. One thread. docs/quality.md
is its page: ``--json build/quality.json --plot docs/quality.png --markdown`` makes it anew. Without
an option the page's generated part is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from capmoe_kernels.evaluate.errors import UsageError
from capmoe_kernels.evaluate.report import about_this_run, write_json
from capmoe_kernels.evaluate.run import check_output, use_threads

from .quality_page import PAGE, around, generated, write_page
from .quality_plot import draw
from .quality_results import Results
from .quality_run import Text, run
from .quality_sections import all_cases
from .quality_settings import Scale

QUICK_SCALE = Scale(factors=(1.0, 1.5, 2.0), few=(1.0,), seeds=(0, 1))
QUICK_TEXT = Text(files=3, bytes_each=512, window=512, batch_tokens=512)


def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    try:
        _check_outputs(arguments)
        earlier = _read(arguments.of) if arguments.of else None
    except UsageError as error:
        print(f"bench.quality: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    results = earlier or Results(_measure(arguments.quick))
    if arguments.json:
        write_json(results.tree, arguments.json)
    if arguments.plot:
        draw(results, arguments.plot)
    if arguments.markdown:
        write_page(results, arguments.markdown)
    if not (arguments.json or arguments.plot or arguments.markdown):
        print(generated(results))


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raise UsageError where a file asked for could not be written."""
    for option in ("json", "plot", "markdown"):
        check_output(f"--{option}", getattr(arguments, option))
    if arguments.markdown:
        around(arguments.markdown)


def _read(path: Path) -> Results:
    """An earlier run that has every case of now; UsageError where it is none."""
    try:
        results = Results(json.loads(path.read_text()))
    except OSError as error:
        raise UsageError(f"--of {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UsageError(f"--of {path}: is not what --json of this program writes") from None
    missing = {case.without_seed() for case in all_cases(results.scale)} - set(results.cases)
    if missing:
        raise UsageError(f"--of {path}: lacks {len(missing)} of the settings that are run now")
    return results


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--quick", action="store_true", help="does everything run? no numbers")
    source.add_argument("--of", type=Path, metavar="JSON", help="of an earlier run; runs nothing")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--plot", type=Path, help="draw the picture here")
    parser.add_argument(
        "--markdown",
        type=Path,
        nargs="?",
        const=PAGE,
        help=f"write the generated part of this page ({PAGE})",
    )
    return parser.parse_args(argv)


def _measure(quick: bool) -> dict[str, Any]:
    scale, text = (QUICK_SCALE, QUICK_TEXT) if quick else (Scale(), Text())
    with use_threads(1):
        return {**about_this_run(), **run(scale, text, _report)}


def _report(done: int, batches: int) -> None:
    print(f"\rbatch {done} of {batches}", end="", file=sys.stderr, flush=True)
    if done == batches:
        print(file=sys.stderr)


if __name__ == "__main__":
    main()
