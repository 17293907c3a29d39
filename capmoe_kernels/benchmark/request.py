"""What to compare, from the command's words; what cannot be is refused in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluate.errors import UsageError
from ..gating import Gating
from .cases import DTYPES
from .models import PRESETS, Preset, Shape

_MOST_TOKENS = 2**20
_OWN = "your sizes"


@dataclass(frozen=True)
class Request:
    """What to compare, and where to write it.

    Attributes:
        name: of the layer.
        layer: its sizes and gate.
        tokens: numbers of tokens of a call.
        factors: capacity factors, each a row.
        keys: contenders, see :data:`~.contenders.KEYS`; the loop is always added.
        dtype: a key of :data:`~.cases.DTYPES`.
        device: cpu or cuda.
        threads: of the processor; with one, CPU time is measured.
        seconds: of samples of each contender and number of tokens.
        skew: deviation of the logarithm of experts' popularity.
        seed: of weights, tokens and popularity.
        json, plot: files to write, or None.
    """

    name: str
    layer: Preset
    tokens: Sequence[int]
    factors: Sequence[float]
    keys: Sequence[str]
    dtype: str = "bf16"
    device: str = "cpu"
    threads: int = 1
    seconds: float = 1.0
    skew: float = 0.5
    seed: int = 0
    json: Path | None = None
    plot: Path | None = None


def choose_layer(
    model: str | None,
    hidden_size: int | None,
    intermediate_size: int | None,
    num_experts: int | None,
    top_k: int | None,
) -> tuple[str, Preset]:
    """A model's layer by name, or one of the sizes given.

    Raises:
        UsageError: no such model, both, some sizes without the others, or more top-k than experts.
    """
    sizes = hidden_size, intermediate_size, num_experts, top_k
    given = [size for size in sizes if size is not None]
    if not given:
        name = model or "olmoe"
        if name not in PRESETS:
            raise UsageError(f"--model {name}: is not one of {', '.join(PRESETS)}")
        return name, PRESETS[name]
    if model is not None or len(given) < len(sizes):
        raise UsageError(
            "--hidden-size, --intermediate-size, --num-experts and --top-k go together, without"
            " --model"
        )
    shape = Shape(*given)
    if shape.top_k > shape.experts:
        raise UsageError(f"--top-k {shape.top_k}: must be at most --num-experts {shape.experts}")
    return _OWN, Preset(shape, Gating(shape.top_k))


def parse_tokens(text: str) -> list[int]:
    """``"1,32,512"`` to numbers >= 1, small ones first.

    Raises:
        UsageError: not a comma-separated list of such.
    """
    items = [item.strip() for item in text.split(",")]
    for item in items:
        if not (item.isascii() and item.isdigit() and 1 <= int(item) <= _MOST_TOKENS):
            raise UsageError(f"--tokens {text}: {item!r} is not a number from 1 to {_MOST_TOKENS}")
    return sorted({int(item) for item in items})


def check_numbers(dtype: str, seconds: float, skew: float) -> None:
    """Raise UsageError where one is out of range."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: is not one of {', '.join(DTYPES)}")
    for option, value in (("--seconds", seconds), ("--skew", skew)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{option} {value}: is not a finite number >= 0")
