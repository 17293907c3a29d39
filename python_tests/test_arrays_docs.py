"""The Python of docs/arrays.md and docs/export.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["arrays.md", "export.md"])
def test_the_examples_run(page):
    """One after the other, with the names of those before; they assert what they claim."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert "assert" in "".join(blocks)


def test_the_pages_name_what_exists():
    for page in ("arrays.md", "export.md"):
        named = r"\b(?:python_tests|capmoe_kernels|examples)/[\w./]*\w\.(?:py|cpp)\b"
        found = re.findall(named, (DOCS / page).read_text())
        assert found, page
        assert all((DOCS.parent / path).exists() for path in found), found
