"""``capmoe bench``; the work is in ``capmoe_kernels.benchmark``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..benchmark.contenders import KEYS
from ..benchmark.models import PRESETS
from .needs import need
from .options import CapacityFactor, Device, Json, Plot

_SIZE = typer.Option(min=1, show_default=False, help="Of a layer of your own; all four together.")


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Sizes of a layer: {', '.join(PRESETS)}.", show_default="olmoe"
        ),
    ] = None,
    hidden_size: Annotated[int | None, _SIZE] = None,
    intermediate_size: Annotated[int | None, _SIZE] = None,
    num_experts: Annotated[int | None, _SIZE] = None,
    top_k: Annotated[int | None, _SIZE] = None,
    tokens: Annotated[
        str, typer.Option(metavar="LIST", help="Tokens of a call, comma-separated.")
    ] = "1,32,512,4096",
    capacity_factor: CapacityFactor = "1.5,1.0",
    contenders: Annotated[
        str, typer.Option(metavar="LIST", help="Who is compared; the loop always is.")
    ] = ",".join(KEYS),
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    device: Device = "cpu",
    threads: Annotated[
        int, typer.Option(min=1, help="Processor threads; with one, CPU time is measured.")
    ] = 1,
    seconds: Annotated[
        float, typer.Option(help="Of samples of each contender and number of tokens.")
    ] = 1.0,
    skew: Annotated[
        float, typer.Option(help="How uneven experts are: the log-normal deviation; 0 is even.")
    ] = 0.5,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of weights, tokens and popularity.")
    ] = 0,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time an MoE layer beside a dense MLP, a loop of F.linear and Transformers' experts.

    Sizes are a real model's, weights and tokens random. Every answer is checked before it is timed;
    samples take turns. Says time and work with and without a capacity.
    """
    need(*(["matplotlib"] if plot is not None else []))
    from ..benchmark.request import Request, check_numbers, choose_layer, parse_tokens
    from ..evaluate.settings import parse_choices, parse_factors
    from .show_bench import bench_and_print

    check_numbers(dtype, seconds, skew)
    name, layer = choose_layer(model, hidden_size, intermediate_size, num_experts, top_k)
    bench_and_print(
        Request(
            name=name,
            layer=layer,
            tokens=parse_tokens(tokens),
            factors=parse_factors(capacity_factor),
            keys=parse_choices("--contenders", contenders, KEYS),
            dtype=dtype,
            device=device,
            threads=threads,
            seconds=seconds,
            skew=skew,
            seed=seed,
            json=json,
            plot=plot,
        )
    )
