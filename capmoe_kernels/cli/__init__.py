"""The ``capmoe`` command; its subcommands are in files of their names."""

from __future__ import annotations

import io
import sys

from .needs import MissingPackage, need


def main() -> None:
    """Entry point of the console command."""
    try:
        need("typer", "rich")
    except MissingPackage as error:
        print(f"capmoe: {error}", file=sys.stderr)
        sys.exit(2)
    from .app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an old terminal shows "?", and the table goes on
            stream.reconfigure(errors="replace")

    app(prog_name="capmoe")
