"""What the pages show runs, what they name exists, and the pictures are of today's numbers."""

from __future__ import annotations

import json
import re
import runpy
from html import unescape
from pathlib import Path

import pytest

import capmoe_kernels as cm
from bench.concept_numbers import numbers
from capmoe_kernels import distributed

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "bench/README.md"))]
broken_links = runpy.run_path(str(DOCS / "check_links.py"))["broken_links"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_links_to_files_lead_somewhere(page):
    """mkdocs looks at links between its pages; these are read as plain Markdown, too."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in link and not link.startswith("#"):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pages
def test_named_files_exist(page):
    folders = "bench|capmoe_kernels|csrc|docs|examples|python_tests"
    for path in re.findall(rf"(?<![\w./])(?:{folders})/[\w./*-]*[\w*]", page.read_text()):
        assert list(ROOT.glob(path)), f"{page.name} names {path}"


@pages
def test_lists_and_tables_stand_apart(page):
    """Right below a paragraph GitHub sees a list or a table there, the site does not."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    joined = re.findall(r"^(?![-*|#]|\d+\. |\s)\S.*\n(?:(?:[-*]|\d+\.) |\|).*", text, re.M)
    assert joined == []


def test_the_example_of_the_concepts_prints_what_the_page_says(capsys):
    text = (DOCS / "concepts.md").read_text()
    example, printed = re.search(
        r"```python\n(.*?)```\s+prints\s+```text\n(.*?)```", text, re.S
    ).groups()
    exec(example, {})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("page", ["index.md", "backends.md"])
def test_short_examples_run(page, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    exec(example, {})


def test_pictures_show_what_the_library_says():
    pictures = sorted((DOCS / "images").glob("*.svg"))
    assert [picture.stem for picture in pictures] == ["rows", "rules", "steps", "straggler"]
    for picture in pictures:
        described = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text(), re.S)
        shown = json.loads(unescape(described[1]))
        assert shown == numbers(), f"{picture.name} is old: python -m bench.draw_concepts"


def test_every_public_name_has_a_place_in_the_api():
    for package, page in ((cm, "index.md"), (distributed, "distributed.md")):
        text = (DOCS / "api" / page).read_text()
        places = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", text, re.M)}
        assert set(package.__all__) <= places, page


@pytest.mark.parametrize(
    "module",
    ["calibrate", "compat", "distributed", "integrations.jax", "integrations.transformers"],
)
def test_every_public_module_has_a_page_in_the_api(module):
    pages = [page.read_text() for page in (DOCS / "api").glob("*.md")]
    assert any(f"::: capmoe_kernels.{module}" in page for page in pages)


def write_site(folder, body):
    (folder / "sub").mkdir()
    (folder / "sub/other.html").write_text('<h2 id="here"></h2><a href="../index.html#top"></a>')
    (folder / "picture.svg").write_text("<svg/>")
    (folder / "index.html").write_text(f'<h1 id="top"></h1>{body}')


BROKEN = {
    "no.html": "a href",
    "#no": "a href",
    "sub/other.html#no": "a href",
    "sub": "a href",
    "no.png": "img src",
    "/no.js": "script src",
}


@pytest.mark.parametrize("link", BROKEN)
def test_a_broken_link_is_found(tmp_path, link):
    write_site(tmp_path, f'<{BROKEN[link]}="{link}">')
    assert broken_links(tmp_path) == [f"index.html: {link}"]


def test_good_links_pass(tmp_path):
    assert len(broken_links(tmp_path)) == 1, "an empty site"
    links = ("sub/other.html#here", "#top", "picture.svg", "https://arxiv.org", "mailto:a@b.c", "")
    write_site(tmp_path, "".join(f'<a href="{link}"></a>' for link in links))
    assert broken_links(tmp_path) == []


def test_quoted_code_stands_in_the_files():
    text = (DOCS / "add_an_op.md").read_text()
    quotes = re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, re.S | re.M)
    assert len(quotes) == text.count("```python") + text.count("```cpp")
    for path, code in quotes:
        assert code in (ROOT / path).read_text(), f"{path} has no longer\n{code}"
