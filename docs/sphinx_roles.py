"""Links for the API pages: docstrings write them as Sphinx does, which Markdown does not read."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|data):`(~?)([\w.]+)`")


class SphinxRoles(griffe.Extension):
    """Turns every role into a link, which fails the build where it leads nowhere."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_link, obj.docstring.value)


def _link(role: re.Match[str]) -> str:
    short, name = role.groups()
    return f"[`{name.split('.')[-1] if short else name}`][{name}]"
