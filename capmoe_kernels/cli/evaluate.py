"""``capmoe evaluate``; the work is in ``capmoe_kernels.evaluate``."""

from __future__ import annotations

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
    Model,
    MoreText,
    Plot,
    Text,
    Threads,
    Window,
)


def evaluate(
    model: Model,
    text: Text,
    more_text: MoreText = None,
    capacity_factor: CapacityFactor = "2.0,1.5,1.0,0.75",
    policy: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Which tokens a full expert keeps: score, keep_first, keep_last, random.",
        ),
    ] = "score,keep_first",
    expand: Expand = "none,local",
    devices: Annotated[
        int,
        typer.Option(
            min=1,
            help="Devices of expert parallelism to simulate: experts are placed on them in order,"
            " and each bounds the load of its own share of the tokens.",
        ),
    ] = 8,
    max_bytes: MaxBytes = None,
    window: Window = None,
    batch_tokens: BatchTokens = 4096,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Measure what a capacity costs and buys MODEL on your text.

    Runs prefill without capacity and with every combination of the lists, and prints how busy the
    busiest expert and device are, the bits per byte, and the time of the MoE layers beside
    Transformers' own.
    """
    need(*EVALUATION)
    from ..evaluate.run import Request
    from ..evaluate.settings import EXPANDS, POLICIES, make_grid, parse_choices, parse_factors
    from .show import evaluate_and_print

    grid = make_grid(
        parse_factors(capacity_factor),
        parse_choices("--policy", policy, POLICIES),
        parse_choices("--expand", expand, EXPANDS),
    )
    evaluate_and_print(
        Request(
            model=model,
            texts=[*text, *(more_text or [])],
            settings=grid,
            num_devices=devices,
            max_bytes=max_bytes,
            window=window,
            batch_tokens=batch_tokens,
            device=device,
            threads=threads,
            json=json,
            plot=plot,
        )
    )
