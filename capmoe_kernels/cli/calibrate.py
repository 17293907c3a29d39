"""``capmoe calibrate``; the work is in ``capmoe_kernels.calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .needs import EVALUATION, MissingPackage, need
from .options import BatchTokens, Device, Json, MaxBytes, Plot, Threads, Window

if TYPE_CHECKING:
    from ..calibrate import Calibration

_GRID = "12 to 1, in 23 steps"


def calibrate(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a Hugging Face MoE checkpoint.",
            show_default="the model that ships",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Text files or folders, such as the model reads in use; once for each.",
            show_default="held-out Python source, for the model that ships",
        ),
    ] = None,
    max_loss: Annotated[
        str,
        typer.Option(help="The most that bits per byte may grow: 0.5% or 0.005."),
    ] = "0.5%",
    confidence: Annotated[
        float, typer.Option(help="That they do not grow by more, on text like this.")
    ] = 0.95,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Devices of expert parallelism: each bounds its own tokens, and a layer waits for"
            " the busiest.",
            show_default="none: a layer waits for its busiest expert",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Which tokens a full expert keeps: score, keep_first, keep_last, random."
        ),
    ] = "score",
    expand: Annotated[str, typer.Option(help="Expanded Drop: none, local.")] = "none",
    capacity_factor: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="The factors that a layer may get, comma-separated.",
            show_default=_GRID,
        ),
    ] = None,
    sample_tokens: Annotated[
        int, typer.Option(min=1, help="Text on which each layer is measured alone, about.")
    ] = 32768,
    max_bytes: MaxBytes = None,
    window: Window = None,
    batch_tokens: BatchTokens = 4096,
    device: Device = "cpu",
    threads: Threads = None,
    out: Annotated[
        Path, typer.Option(metavar="OUT.json", help="The capacities, as apply reads them.")
    ] = Path("capacity.json"),
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Find a capacity factor for each layer of MODEL that costs no more quality than you allow.

    Minimises how long steps wait for their busiest expert or device, summed over layers, checks the
    loss on text that had no part in choosing, compares with one factor for all layers, and writes
    capacity.json, which apply(model, capacity="capacity.json") reads.
    """
    need(*EVALUATION)
    from ..calibrate import CalibrateRequest
    from ..calibrate import calibrate as run
    from ..calibrate.request import GRID, check_request, parse_max_loss
    from ..evaluate.settings import parse_factors

    request = CalibrateRequest(
        model=model,
        texts=text or [],
        max_loss=parse_max_loss(max_loss),
        confidence=confidence,
        devices=devices,
        policy=policy,
        expand=expand,
        grid=parse_factors(GRID if capacity_factor is None else capacity_factor),
        sample_tokens=sample_tokens,
        max_bytes=max_bytes,
        window=window,
        batch_tokens=batch_tokens,
        device=device,
        threads=threads,
        out=out,
        json=json,
        plot=plot,
    )
    try:
        check_request(request)
    except ImportError as error:
        raise MissingPackage(str(error)) from None
    _show(run(request))


def _show(calibration: Calibration) -> None:
    """Print what was found, and where the files went."""
    from ..calibrate.table import calibration_table
    from ..calibrate.words import conclusions, notes, texts_in_words
    from ..evaluate.table import make_console

    console = make_console()
    console.print(
        f"{calibration.source}: {len(calibration.capacities)} MoE layers of"
        f" {calibration.num_experts} experts, top-{calibration.top_k};"
        f" {texts_in_words(calibration)}\n",
        soft_wrap=True,
    )
    console.print(calibration_table(calibration))
    console.print()
    for line in notes(calibration):
        console.print(line)
    console.print("\n[bold]What this shows[/bold]")
    for sentence in conclusions(calibration):
        console.print(f"- {sentence}", soft_wrap=True)
    request = calibration.request
    for path in (request.out, request.json, request.plot):
        if path is not None:
            console.print(f"wrote {path}")
