"""``capmoe straggler``; the work is in ``capmoe_kernels.evaluate.straggler_run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .needs import EVALUATION, need
from .options import (
    BatchTokens,
    CapacityFactor,
    Device,
    Expand,
    Json,
    MaxBytes,
    Plot,
    Threads,
    Window,
)


def straggler(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL|TRACE.safetensors",
            help="Folder of a Hugging Face MoE checkpoint, or a trace of router_logits or topk_ids"
            " (docs/straggler.md).",
            show_default="the model that ships",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Text files or folders for a checkpoint; once for each.",
            show_default="held-out Python source",
        ),
    ] = None,
    devices: Annotated[
        str, typer.Option(metavar="LIST", help="Numbers of devices, comma-separated.")
    ] = "4,8,32",
    capacity_factor: CapacityFactor = "2,1.5,1",
    expand: Expand = "none,local",
    max_bytes: MaxBytes = None,
    window: Window = None,
    batch_tokens: BatchTokens = 4096,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    plot: Plot = None,
    save_trace: Annotated[
        Path | None,
        typer.Option(metavar="OUT.safetensors", help="Keep what the model's tokens ask for here."),
    ] = None,
) -> None:
    """Count how much the busiest expert and device hold, and what a capacity is worth there.

    Places the experts on so many devices, in order, gives each device its share of the tokens, and
    prints loads before and after capacity, the bound of the speed-up, and the bytes exchanged.
    """
    need(*EVALUATION)
    from ..evaluate.settings import EXPANDS, parse_choices, parse_factors, parse_numbers
    from ..evaluate.straggler_run import StragglerRequest
    from .show import count_and_print

    count_and_print(
        StragglerRequest(
            source=source,
            texts=text or [],
            devices=parse_numbers("--devices", devices),
            factors=parse_factors(capacity_factor),
            expands=parse_choices("--expand", expand, EXPANDS),
            max_bytes=max_bytes,
            window=window,
            batch_tokens=batch_tokens,
            device=device,
            threads=threads,
            json=json,
            plot=plot,
            save_trace=save_trace,
        )
    )
