"""A run as JSON, with all that is needed to repeat and to judge it."""

from __future__ import annotations

from typing import Any

from ..evaluate.report import about_this_run
from .results import Cell, Result
from .run import Found


def as_json(found: Found) -> dict[str, Any]:
    """A tree of plain values; times in milliseconds, loads in units of the mean asked for."""
    request = found.request
    shape, gating = request.layer
    return {
        **about_this_run(),
        "layer": {
            "name": request.name,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_experts": shape.experts,
            "top_k": shape.top_k,
            "scoring": gating.scoring,
            "renormalize": gating.renormalize,
        },
        "options": {
            "dtype": request.dtype,
            "device": request.device,
            "threads": request.threads,
            "seconds": request.seconds,
            "skew": request.skew,
            "seed": request.seed,
        },
        "clock": found.clock,
        "load_average": list(found.load),
        "cells": [_cell(cell) for cell in found.cells],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "tokens": cell.tokens,
        "demand_per_expert": cell.demand,
        "busiest": cell.busiest,
        "results": [_result(cell, result) for result in cell.results],
    }


def _result(cell: Cell, result: Result) -> dict[str, Any]:
    low, high = result.quartiles or (None, None)
    return {
        "contender": result.key,
        "name": result.name,
        "factor": result.factor,
        "not_timed": result.reason,
        "ms": _ms(result.median),
        "ms_low": _ms(low),
        "ms_high": _ms(high),
        "samples": len(result.samples),
        "speed": cell.speed(result),
        "rows": result.rows,
        "work": result.work,
        "busiest": result.busiest,
        "error": result.error,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
