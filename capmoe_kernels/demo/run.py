"""``capmoe demo``: the evaluation on the model that ships, and what it shows in plain words."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from ..cli.show import print_files, print_report
from ..evaluate.errors import UsageError
from ..evaluate.run import Request, check_outputs, run
from ..evaluate.settings import POLICIES, Setting, make_grid
from ..evaluate.table import make_console
from ..evaluate.words import conclusions
from .corpus import held_out_files

FACTORS = (2.0, 1.5, 1.0, 0.75)
DEVICES = 8
_KIB = 1024
# All the text a first look needs: more narrows the error bars, and takes as much longer.
_BYTES_OF_A_FILE = 5 * _KIB
_QUICK_FILES = 4
_QUICK_BYTES = 4 * _KIB

_INTRODUCTION = """\
The straggler effect: an MoE layer is done when its busiest expert is, and some get several times \
the mean load.
A capacity bounds every expert's load and drops what does not fit: the slowest expert has less to \
do, at some loss.
Measured here, on Python files the model has never seen: the load before and after, and the loss \
in bits per byte."""


def run_demo(json: Path | None, plot: Path, quick: bool) -> None:
    """Evaluate the model that ships on the held-out files, print, and draw.

    Raises:
        UsageError: the model or the standard library's sources are not there, or a file cannot be
            written where it is wanted.
    """
    console = make_console()
    with as_file(files(__package__) / "model") as model:
        if not model.is_dir():
            raise UsageError("the demo's model is not installed (capmoe_kernels/demo/model)")
        request = _request(model, json, plot, quick)
        check_outputs(request)
        console.print(_INTRODUCTION + "\n")
        report = run(request)
    print_report(console, report)
    console.print("\n[bold]What this shows[/bold]")
    for sentence in conclusions(report.evaluation):
        console.print(f"- {sentence}", soft_wrap=True)
    print_files(console, request)


def _request(model: Path, json: Path | None, plot: Path, quick: bool) -> Request:
    texts = [path for path in held_out_files() if path.is_file()]
    if not texts:
        raise UsageError("this Python comes without the standard library's source files")
    grid = make_grid(FACTORS, POLICIES, ["none"])
    grid += [Setting(factor, "score", "local") for factor in FACTORS]
    if quick:
        texts = texts[:_QUICK_FILES]
        grid = [setting for setting in grid if setting.factor == 1.0]
    return Request(
        model,
        texts,
        grid,
        DEVICES,
        max_bytes=_QUICK_BYTES if quick else _BYTES_OF_A_FILE,
        # A model this small gains nothing from more, and loses much where cores are shared.
        threads=1,
        json=json,
        plot=plot,
        title="Capacity-aware inference of the demo model (held-out Python source)",
    )
