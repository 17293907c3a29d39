"""The commands and their options; the work is in ``capmoe_kernels.evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..evaluate.errors import UsageError
from .needs import MissingPackage, need

app = typer.Typer(
    help="Capacity-aware Mixture-of-Experts inference: no expert holds more tokens than you allow.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_EVALUATION = ("transformers", "safetensors", "matplotlib")


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


@app.command()
def info() -> None:
    """Say what is installed, what runs where and why, and what the machine has."""
    from .info import print_info

    print_info()


@app.command()
def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a Hugging Face MoE checkpoint.")
    ],
    text: Annotated[
        list[Path],
        typer.Option(metavar="PATH...", help="Text files, or folders of them (all UTF-8 files)."),
    ],
    # `--text A B C` gives A to the option and B, C to this argument.
    more_text: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", hidden=True, show_default=False)
    ] = None,
    capacity_factor: Annotated[
        str, typer.Option(metavar="LIST", help="Capacity factors, comma-separated.")
    ] = "2.0,1.5,1.0,0.75",
    policy: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Which tokens a full expert keeps: score, keep_first, keep_last, random.",
        ),
    ] = "score,keep_first",
    expand: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Expanded Drop: none, or local, which lets experts with room take more tokens of"
            " their own device.",
        ),
    ] = "none,local",
    devices: Annotated[
        int,
        typer.Option(
            min=1,
            help="Devices of expert parallelism to simulate: experts are placed on them in order,"
            " and each bounds the load of its own share of the tokens.",
        ),
    ] = 8,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Read this much of each file.", show_default="all")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens in one sequence.", show_default="512")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens in one forward pass, about.")
    ] = 4096,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda.")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processor threads; 1 where cores are shared.", show_default=False
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write every number here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw the picture here.")
    ] = None,
) -> None:
    """Measure what a capacity costs and buys MODEL on your text.

    Runs prefill without capacity and with every combination of the lists, and prints how busy the
    busiest expert and device are, the bits per byte, and the time of the MoE layers beside
    Transformers' own.
    """
    with _one_line_errors():
        need(*_EVALUATION)
        from ..evaluate.run import Request
        from ..evaluate.settings import EXPANDS, POLICIES, make_grid, parse_choices, parse_factors
        from .show import evaluate_and_print

        grid = make_grid(
            parse_factors(capacity_factor),
            parse_choices("--policy", policy, POLICIES),
            parse_choices("--expand", expand, EXPANDS),
        )
        texts = [*text, *(more_text or [])]
        evaluate_and_print(
            Request(
                model=model,
                texts=texts,
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


@app.command()
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
    capacity_factor: Annotated[
        str, typer.Option(metavar="LIST", help="Capacity factors, comma-separated.")
    ] = "2,1.5,1",
    expand: Annotated[
        str,
        typer.Option(metavar="LIST", help="none: Token Drop; local: Expanded Drop on own experts."),
    ] = "none,local",
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Read this much of each file.", show_default="all")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens in one sequence.", show_default="512")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens in one forward pass, about.")
    ] = 4096,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write every number here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw the picture here.")
    ] = None,
    save_trace: Annotated[
        Path | None,
        typer.Option(metavar="OUT.safetensors", help="Keep what the model's tokens ask for here."),
    ] = None,
) -> None:
    """Count how much the busiest expert and device hold, and what a capacity is worth there.

    Places the experts on so many devices, in order, gives each device its share of the tokens, and
    prints loads before and after capacity, the bound of the speed-up, and the bytes exchanged.
    """
    with _one_line_errors():
        need(*_EVALUATION)
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


@app.command()
def demo(
    json: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write every number here.")
    ] = None,
    plot: Annotated[Path, typer.Option(metavar="OUT.png", help="Draw the picture here.")] = Path(
        "capmoe_demo.png"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Less text and fewer settings.")] = False,
) -> None:
    """Show the straggler effect, and what capacity does about it, on the model that ships."""
    with _one_line_errors():
        need(*_EVALUATION)
        from ..demo.run import run_demo

        run_demo(json, plot, quick)
