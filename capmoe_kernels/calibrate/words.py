"""What a calibration found, in sentences computed from its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .confidence import text_needed
from .find import Answer
from .measured import Factors
from .run import Calibration
from .split import FEWEST
from .validate import Verdict


def texts_in_words(calibration: Calibration) -> str:
    """What was read for what."""
    first, second = calibration.calibration, calibration.validation
    files = {each.path for each in [*first.documents, *second.documents]}
    kind = "files" if len(files) >= 2 * FEWEST else "pieces"
    return (
        f"calibrated on {len(first.documents)} {kind}, {first.num_tokens:,} tokens (layers alone:"
        f" {calibration.sample.num_tokens:,}); validated on {len(second.documents)} others,"
        f" {second.num_tokens:,} tokens"
    )


def conclusions(calibration: Calibration) -> list[str]:
    """For a reader who skips the table."""
    return [
        _main(calibration),
        _comparison(calibration),
        *_why_not_more(calibration),
        _sureness(calibration),
    ]


def notes(calibration: Calibration) -> list[str]:
    """What the columns mean."""
    devices = calibration.request.devices
    what = "expert" if devices is None else "device"
    lines = [
        f"busiest {what}: its load before → after capacity / the mean asked for, validation text."
        " bound: before / after.",
        "loss alone: of the layer's factor with all others dropless, on the sample.",
    ]
    if devices is not None:
        lines.append(
            f"Capacity is applied by each of {devices} simulated ranks to its own tokens; experts"
            " are placed in order."
        )
    return lines


def _main(calibration: Calibration) -> str:
    request, proven = calibration.request, calibration.found.answer.proven
    if proven is None:
        return (
            f"No factors were confirmed to lose at most {_percent(request.max_loss)}: every layer"
            " stays dropless."
        )
    what = "expert" if request.devices is None else "device"
    return (
        f"These factors cost {_loss(proven)} bits per byte on the validation text, and at most"
        f" {_percent(request.max_loss)} with {100 * request.confidence:g} % confidence (its"
        f" interval ends at {_percent(proven.upper)}); the experts' part of a step that waits for"
        f" its busiest {what} is at most {_times(proven)} shorter."
    )


def _sureness(calibration: Calibration) -> str:
    """What the confidence rests on."""
    return (
        f"The confidence is over {len(calibration.validation.documents)} validation documents, and"
        " supposes that their losses vary about normally: where a few documents lose far more than"
        " most it is lower, above all with few documents (docs/calibrate.md)."
    )


def _comparison(calibration: Calibration) -> str:
    """Whether a factor for each layer is worth it."""
    found = calibration.found
    layers, uniform = found.per_layer, found.uniform
    text = (
        f"Per layer against one factor for all, on the calibration text:"
        f" {_best(layers)} against {_best(uniform)}"
    )
    if layers.proven is None and uniform.proven is None:
        return f"{text}."
    verdict = (
        "The file has the former"
        if found.chosen == "per_layer"
        else "The search found no factors per layer that are confirmed to be better, so the file"
        " has one for all"
    )
    return (
        f"{text}; as far as validation confirms, {_proven(layers)} against {_proven(uniform)}."
        f" {verdict}."
    )


def _best(answer: Answer) -> str:
    best = answer.best
    bound = f"{1 / best.time:.3f}x" if best.time else "unbounded"
    return f"{bound} at {100 * best.loss:+.2f} % ({_factors(best.candidate.factors)})"


def _proven(answer: Answer) -> str:
    if answer.proven is None:
        return "nothing"
    return f"{_times(answer.proven)} ({_factors(answer.proven.candidate.factors)})"


def _factors(factors: Factors) -> str:
    """A long list of factors says nothing in a sentence."""
    if len(set(factors)) == 1:
        return "dropless" if factors[0] is None else f"{factors[0]:g}"
    if len(factors) <= 8:
        return ", ".join("dropless" if each is None else f"{each:g}" for each in factors)
    bounded = [each for each in factors if each is not None]
    return f"{min(bounded):g} to {max(bounded):g}"


def _why_not_more(calibration: Calibration) -> Iterator[str]:
    """What stopped the search, and how much text could move it on."""
    request, answer = calibration.request, calibration.found.answer
    if answer.best.time >= 1:
        yield "No factor that saves time fits: give larger ones with --capacity-factor."
    elif answer.verdicts[-1].holds:
        if set(answer.best.candidate.factors) == {min(request.grid)}:
            yield "The tightest factor fits: give smaller ones with --capacity-factor."
    else:
        yield _failure(calibration, answer.verdicts[-1])


def _failure(calibration: Calibration, failed: Verdict) -> str:
    max_loss = calibration.request.max_loss
    needed = text_needed(failed.loss, failed.upper, max_loss)
    text = f"The next tighter factors ({_factors(failed.candidate.factors)}) lose {_loss(failed)}"
    if needed is None:
        return f"{text} on the validation text."
    size = calibration.validation.num_bytes + calibration.calibration.num_bytes
    rounded = int(float(f"{needed * size:.2g}"))
    return (
        f"{text}, but this is too little text to say: the upper end is {_percent(failed.upper)}."
        f" If that is the loss, about {rounded:,} bytes of text like this can tell; these are"
        f" {size:,}."
    )


def _loss(verdict: Verdict) -> str:
    return f"{100 * verdict.loss:+.2f} %"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if math.isfinite(value) else "unknown"


def _times(verdict: Verdict) -> str:
    return f"{1 / verdict.time:.3f}x" if verdict.time else "any number of times"
