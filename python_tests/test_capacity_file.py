"""capacity.json says what it means once, in words that are known, or is refused.

test_transformers_scopes.py has its layers.
"""

from __future__ import annotations

import json

import pytest

from capmoe_kernels import Capacity
from capmoe_kernels.integrations.capacity_file import read_capacities, write_capacities

WHOLE = {"format": "capmoe_kernels.capacity", "version": 1, "about": {}, "layers": [None]}


def refused(tmp_path, text, word):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"broken.json {word}"):
        read_capacities(path)


@pytest.mark.parametrize("key", ["decode", "num_ranks", "Layers"])
def test_an_unknown_key_is_refused(tmp_path, key):
    word = f"has '{key}': it may have format, version, about, layers"
    refused(tmp_path, json.dumps(WHOLE | {key: 8}), word)


@pytest.mark.parametrize("version", [True, 1.0, "1", None, 2])
def test_the_version_is_an_int(tmp_path, version):
    refused(
        tmp_path, json.dumps(WHOLE | {"version": version}), f"must have version 1, got {version!r}"
    )


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[null]", '[null], "layers": [{"limit": 1}]', "layers"),
        ("[null]", '[{"factor": 1.0, "factor": 9.0}]', "factor"),
        ("{}", '{"model": "a", "model": "b"}', "model"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, old, new, key):
    text = json.dumps(WHOLE)
    assert old in text
    refused(tmp_path, text.replace(old, new, 1), f"has '{key}' twice in one object")


def test_about_may_hold_anything_and_be_missing(tmp_path):
    path = tmp_path / "capacity.json"
    write_capacities(path, [None, Capacity(factor=2.0)], {"decode": 1, "layers": []})
    assert read_capacities(path) == [None, Capacity(factor=2.0)]
    path.write_text(json.dumps({key: WHOLE[key] for key in ("format", "version", "layers")}))
    assert read_capacities(path) == [None]
