"""An evaluation as JSON, with all that is needed to repeat and to judge it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..backends import backends
from .machine import describe, versions
from .results import Evaluation, Result
from .text import Document

SCHEMA = 1


def as_json(
    evaluation: Evaluation, model: str, documents: Sequence[Document], options: dict[str, Any]
) -> dict[str, Any]:
    """A tree of plain values; loads are in units of the mean demand of an expert or device."""
    return {
        **about_this_run(),
        "model": model,
        "text": {
            "files": [{"path": str(each.path), "bytes": each.num_bytes} for each in documents],
            "bytes": sum(each.num_bytes for each in documents),
            "tokens": sum(len(each.tokens) - 1 for each in documents),
        },
        "options": options,
        "num_experts": evaluation.num_experts,
        "num_devices": evaluation.num_devices,
        "transformers": _result(evaluation.transformers),
        "dropless": _result(evaluation.dropless),
        "results": [_result(result) for result in evaluation.results],
    }


def about_this_run() -> dict[str, Any]:
    """Command, date, versions and machine."""
    return {
        "schema": SCHEMA,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "backends": backends().serving,
        "machine": describe(),
    }


def write_json(tree: dict[str, Any], path: Path) -> None:
    """Strict JSON: no NaN or infinity."""
    path.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")


def _result(result: Result) -> dict[str, Any]:
    """A result with its setting's fields at the top."""
    tree = asdict(result)
    setting = tree.pop("setting")
    return {**(setting or {}), **tree}
