"""Checks the built site: every link, image and script that stays inside leads to what is there.

    python docs/check_links.py build/site

Anchors are checked, too. Other sites are not asked.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

_TARGETS = {"href", "src"}


class _Page(HTMLParser):
    """The ids of a page, and what it points to."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            elif name in _TARGETS and value is not None:
                self.links.add(value)


def broken_links(site: Path) -> list[str]:
    """``page: link`` of every one that leads nowhere."""
    pages = {path.resolve(): _Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site}: there are no pages"]
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # served for any path, so its links start at the site's root
            continue
        for link in sorted(page.links):
            if not _leads_somewhere(link, path, pages):
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return broken


def _leads_somewhere(link: str, path: Path, pages: dict[Path, _Page]) -> bool:
    if urlsplit(link).scheme or link.startswith("//"):
        return True
    place, anchor = urldefrag(link)
    target = (path.parent / unquote(place)).resolve() if place else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return False
    return not anchor or target not in pages or unquote(anchor) in pages[target].ids


def main() -> int:
    site = Path(sys.argv[1])
    broken = broken_links(site)
    print("\n".join(broken) or f"{site}: every link inside leads somewhere")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
