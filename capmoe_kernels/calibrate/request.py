"""What to calibrate, and what of it can be refused before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..evaluate.checkpoint import Checkpoint
from ..evaluate.errors import UsageError
from ..evaluate.run import check_output
from ..evaluate.settings import EXPANDS, POLICIES, check_factor, parse_factors
from .passes import Method

GRID = "12,10,9,8,7,6,5.5,5,4.5,4,3.75,3.5,3.25,3,2.75,2.5,2.25,2,1.8,1.6,1.4,1.2,1"
# A fraction from here on may have been meant as per cent.
_AMBIGUOUS = 0.1


@dataclass(frozen=True)
class CalibrateRequest:
    """What to calibrate on which text, and where to write it.

    Attributes:
        model: checkpoint folder; None: the model that ships.
        texts: files and folders; none: for the model that ships, text it has never seen.
        max_loss: bound of the relative increase of bits per byte, a fraction.
        confidence: of the one-sided interval whose upper end must be within ``max_loss``, too.
        devices: D expert-parallel ranks, each of which bounds its own tokens; what a layer waits
            for then is its busiest device. None: one rank, and the busiest expert.
        policy, expand: of every capacity; ``expand`` is none or local.
        grid: the factors that a layer may get.
        sample_tokens: text on which each layer is measured alone, about.
        max_bytes, window, batch_tokens, device, threads: see
            ``capmoe_kernels.evaluate.run.Request``. A capacity is of one forward pass, so
            ``batch_tokens`` should be what is used later.
        out: ``capacity.json``, or None.
        json, plot: files to write, or None.
    """

    model: Path | None = None
    texts: Sequence[Path] = ()
    max_loss: float = 0.005
    confidence: float = 0.95
    devices: int | None = None
    policy: str = "score"
    expand: str = "none"
    grid: Sequence[float] = field(default_factory=lambda: parse_factors(GRID))
    sample_tokens: int = 32768
    max_bytes: int | None = None
    window: int | None = None
    batch_tokens: int = 4096
    device: str = "cpu"
    threads: int | None = None
    out: Path | None = None
    json: Path | None = None
    plot: Path | None = None

    @property
    def method(self) -> Method:
        return Method(self.devices, self.policy, self.expand)


def parse_max_loss(text: str) -> float:
    """``"0.5%"`` or ``"0.005"`` to 0.005.

    Raises:
        UsageError: no such number, or one that may have been meant as per cent.
    """
    number = text.strip()
    percent = number.endswith("%")
    try:
        value = float(number.removesuffix("%"))
    except ValueError:
        raise UsageError(f"--max-loss {text}: expected a number such as 0.5% or 0.005") from None
    if not percent and value >= _AMBIGUOUS:
        raise UsageError(
            f"--max-loss {text}: with a per cent sign, {number}% or {100 * value:g}%, it is clear"
            " which is meant"
        )
    return _checked_max_loss(value / 100 if percent else value, text)


def _checked_max_loss(value: float, text: str) -> float:
    if not (math.isfinite(value) and 0 < value <= 1):
        raise UsageError(f"--max-loss {text}: must be more than 0 and at most 100%")
    return value


def check_request(request: CalibrateRequest) -> None:
    """Raise UsageError for what can be refused without the model; ImportError without scipy."""
    if find_spec("scipy") is None or find_spec("numpy") is None:
        raise ImportError("calibrate needs scipy: pip install 'capmoe-kernels[placement]'")
    _check_outputs(request)
    _checked_max_loss(request.max_loss, f"{request.max_loss:g}")
    if not 0.5 <= request.confidence < 1:
        raise UsageError(f"--confidence {request.confidence:g}: must be from 0.5 to below 1")
    _check_choice("--policy", request.policy, POLICIES)
    _check_choice("--expand", request.expand, EXPANDS)
    if not request.grid:
        raise UsageError("--capacity-factor: expected at least one factor")
    for factor in request.grid:
        check_factor(factor, f"--capacity-factor {factor:g}")
    if request.window is not None and request.window < 2:
        raise UsageError(
            f"--window {request.window}: must be at least 2; a pass of one token per sequence is a"
            " decoding step, which capacity does not bound"
        )
    if request.sample_tokens < 1:
        raise UsageError(f"--sample-tokens {request.sample_tokens}: must be at least 1")
    if request.model is not None and not request.texts:
        raise UsageError("--text: give text such as your model reads; factors are found for it")


def check_devices(checkpoint: Checkpoint, devices: int | None) -> None:
    """Raise UsageError where experts cannot be dealt out evenly."""
    if devices is not None and (devices < 1 or checkpoint.num_experts % devices):
        raise UsageError(
            f"--devices {devices}: must divide the model's {checkpoint.num_experts} experts"
        )


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{option} {value}: must be one of {', '.join(choices)}")


def _check_outputs(request: CalibrateRequest) -> None:
    """All can be written, none over another."""
    seen: dict[Path, str] = {}
    outputs = {"--out": request.out, "--json": request.json, "--plot": request.plot}
    for option, path in outputs.items():
        check_output(option, path)
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise UsageError(f"{option} {path}: is what {other} writes, too")
