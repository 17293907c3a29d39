"""Options that several commands have, said once. A default is the command's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of a Hugging Face MoE checkpoint.")
]
Text = Annotated[
    list[Path],
    typer.Option(metavar="PATH...", help="Text files, or folders of them (all UTF-8 files)."),
]
# `--text A B C` gives A to the option and B, C to this argument.
MoreText = Annotated[
    list[Path] | None, typer.Argument(metavar="PATH", hidden=True, show_default=False)
]
CapacityFactor = Annotated[
    str, typer.Option(metavar="LIST", help="Capacity factors, comma-separated.")
]
Expand = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Expanded Drop: none, or local, which lets experts with room take more tokens of"
        " their own device.",
    ),
]
MaxBytes = Annotated[
    int | None, typer.Option(min=1, help="Read this much of each file.", show_default="all")
]
Window = Annotated[
    int | None, typer.Option(min=1, help="Tokens in one sequence.", show_default="512")
]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens in one forward pass, about.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Processor threads; 1 where cores are shared.", show_default=False),
]
Json = Annotated[Path | None, typer.Option(metavar="OUT.json", help="Write every number here.")]
Plot = Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw the picture here.")]
