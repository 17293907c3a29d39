"""``capacity.json``, and every number as JSON."""

from __future__ import annotations

import math
from typing import Any

from ..evaluate.report import about_this_run, write_json
from ..integrations.capacity_file import write_capacities
from .find import Answer, Tried
from .layers import layer_rows
from .run import Calibration, Part
from .validate import Verdict


def write_files(calibration: Calibration) -> None:
    """Write what the request names."""
    request = calibration.request
    tree = as_json(calibration)
    if request.json is not None:
        write_json(tree, request.json)
    if request.plot is not None:
        from .plot import draw_calibration

        draw_calibration(calibration, request.plot)
    if request.out is not None:
        about = {name: tree[name] for name in _ABOUT} | {"validation": tree["result"]}
        write_capacities(request.out, calibration.capacities, about)


_ABOUT = ("command", "date", "versions", "model", "options", "max_loss", "confidence")


def as_json(calibration: Calibration) -> dict[str, Any]:
    """A tree of plain values; losses are fractions, times relative to dropless, loads rows."""
    request, found = calibration.request, calibration.found
    return {
        **about_this_run(),
        "model": calibration.source if request.model is None else str(request.model),
        "options": {
            "devices": request.devices,
            "policy": request.policy,
            "expand": request.expand,
            "capacity_factor": list(request.grid),
            "max_bytes": request.max_bytes,
            "window": calibration.window,
            "batch_tokens": request.batch_tokens,
            "device": request.device,
            "threads": calibration.threads,
        },
        "num_experts": calibration.num_experts,
        "top_k": calibration.top_k,
        "max_loss": request.max_loss,
        "confidence": request.confidence,
        "waits_for": "expert" if request.devices is None else "device",
        "sample_tokens": calibration.sample.num_tokens,
        "calibration": _part(calibration.calibration, found.calibration.nats.tolist()),
        "validation": _part(calibration.validation, found.validation.nats.tolist()),
        "curves": [[vars(choice) for choice in curve] for curve in found.curves],
        "per_layer": _answer(found.per_layer),
        "uniform": _answer(found.uniform),
        "chosen": found.chosen,
        "result": _result(calibration),
    }


def _part(part: Part, nats: list[float]) -> dict[str, Any]:
    return {
        "documents": [
            {"path": str(each.path), "bytes": each.num_bytes, "dropless_nats": some}
            for each, some in zip(part.documents, nats, strict=True)
        ],
        "bytes": part.num_bytes,
        "tokens": part.num_tokens,
        "dropless_bits_per_byte": sum(nats) / math.log(2) / part.num_bytes,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "tried": [_tried(each) for each in answer.tried],
        "best": _tried(answer.best),
        "validation": [_verdict(each) for each in answer.verdicts],
    }


def _tried(tried: Tried) -> dict[str, Any]:
    return {**vars(tried.candidate), "loss": tried.loss, "time": tried.time}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "factors": verdict.candidate.factors,
        "loss": verdict.loss,
        "upper": verdict.upper if math.isfinite(verdict.upper) else None,
        "time": verdict.time,
        "holds": verdict.holds,
        "nats": verdict.measured.nats.tolist(),
    }


def _result(calibration: Calibration) -> dict[str, Any]:
    """What the files promise of the validation text."""
    found = calibration.found
    proven = found.answer.proven
    return {
        "factors": found.factors,
        "loss": 0.0 if proven is None else proven.loss,
        "upper": 0.0 if proven is None else proven.upper,
        "time": 1.0 if proven is None else proven.time,
        "layers": [
            {
                "factor": row.factor,
                "busiest_before": row.before,
                "busiest_after": row.after,
                "bound": row.bound,
                "kept": row.kept,
                "extra": row.extra,
                "loss_alone": row.loss_alone,
            }
            for row in layer_rows(calibration)
        ],
    }
