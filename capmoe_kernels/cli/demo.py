"""``capmoe demo``; the work is in ``capmoe_kernels.demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .needs import EVALUATION, need
from .options import Json


def demo(
    json: Json = None,
    plot: Annotated[Path, typer.Option(metavar="OUT.png", help="Draw the picture here.")] = Path(
        "capmoe_demo.png"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Less text and fewer settings.")] = False,
) -> None:
    """Show the straggler effect, and what capacity does about it, on the model that ships."""
    need(*EVALUATION)
    from ..demo.run import run_demo

    run_demo(json, plot, quick)
