"""The app, its commands, and what an error looks like; a command has a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from ..evaluate.errors import UsageError
from .bench import bench
from .calibrate import calibrate
from .demo import demo
from .evaluate import evaluate
from .info import info
from .needs import MissingPackage
from .straggler import straggler

app = typer.Typer(
    help="Capacity-aware Mixture-of-Experts inference: no expert holds more tokens than you allow.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can mend is one line on standard error and exit code 2."""
    try:
        yield
    except (UsageError, MissingPackage) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(message: str) -> NoReturn:
    typer.echo(f"capmoe: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


for _command in (info, evaluate, straggler, calibrate, bench, demo):
    app.command()(_one_line_errors()(_command))
