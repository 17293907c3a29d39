"""``capacity.json``: one capacity for every MoE block of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ..capacity import Capacity

_FORMAT = "capmoe_kernels.capacity"
_VERSION = 1
_KEYS = ("format", "version", "about", "layers")
_FIELDS = {each.name: each.default for each in fields(Capacity) if each.init}


def write_capacities(
    path: str | os.PathLike[str],
    capacities: Sequence[Capacity | None],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write ``capacities``, one per MoE block in the model's order; None bounds nothing.

    Args:
        path: of the file; it is whole or not there.
        capacities: see above.
        about: what the reader should know of them, such as the model; any JSON.
    """
    layers = [None if each is None else _as_json(each) for each in capacities]
    text = json.dumps(
        {"format": _FORMAT, "version": _VERSION, "about": dict(about or {}), "layers": layers},
        indent=1,
    )
    part = Path(f"{os.fspath(path)}.part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def read_capacities(path: str | os.PathLike[str]) -> list[Capacity | None]:
    """What :func:`write_capacities` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: it is not one, has a key that is unknown or stands twice, or a layer of it is no
            capacity; names the file and the layer.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=partial(_without_repeats, name))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f'{name} must have "format": "{_FORMAT}", as capmoe calibrate writes it')
    version = content.get("version")
    if type(version) is not int or version != _VERSION:
        raise ValueError(f"{name} must have version {_VERSION}, got {version!r}")
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise ValueError(f"{name} has {unknown[0]!r}: it may have {', '.join(_KEYS)}")
    layers = content.get("layers")
    if not isinstance(layers, list):
        raise ValueError(f"{name} must have a list of layers, got {type(layers).__name__}")
    return [_from_json(f"{name}, layer {number}", each) for number, each in enumerate(layers)]


def _without_repeats(file: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's own reader would take the last of several values in silence."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{file} has {key!r} twice in one object")
        content[key] = value
    return content


def _as_json(capacity: Capacity) -> dict[str, Any]:
    return {
        name: value
        for name, default in _FIELDS.items()
        if (value := getattr(capacity, name)) != default
    }


def _from_json(where: str, layer: Any) -> Capacity | None:
    if layer is None:
        return None
    if not isinstance(layer, dict):
        raise ValueError(f"{where} must be an object or null, got {type(layer).__name__}")
    unknown = sorted(set(layer) - set(_FIELDS))
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}, which is no field of Capacity")
    if isinstance(layer.get("local_experts"), list):
        layer = {**layer, "local_experts": tuple(layer["local_experts"])}
    try:
        return Capacity(**layer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
