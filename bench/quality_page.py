"""The generated part of docs/quality.md; what stands around it is written by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from capmoe_kernels.evaluate.errors import UsageError

from . import quality_tables as tables
from .quality_findings import beyond_the_paper, of_the_paper
from .quality_results import Results
from .quality_settings import DEVICES, EXPERTS, OWN
from .quality_words import text_table

PAGE = Path(__file__).parent.parent / "docs" / "quality.md"
_BEGIN, _END = "<!-- begin: bench.quality -->", "<!-- end: bench.quality -->"


def write_page(results: Results, path: Path) -> None:
    """Put the tables between the page's two marks; see :func:`around`."""
    before, after = around(path)
    path.write_text(f"{before}{_BEGIN}\n\n{generated(results)}\n\n{_END}{after}")


def around(path: Path) -> tuple[str, str]:
    """What stands before and after the marks; a page that is not there has nothing.

    Raises:
        UsageError: the page is there, without the marks.
    """
    page = path.read_text() if path.exists() else f"{_BEGIN}\n{_END}\n"
    if page.count(_BEGIN) != 1 or page.count(_END) != 1:
        raise UsageError(f"--markdown {path}: must have {_BEGIN} and {_END} once each")
    return page.split(_BEGIN)[0], page.split(_END)[1]


def generated(results: Results) -> str:
    """Everything with a number in it."""
    return "\n\n".join(
        [
            "## The run",
            _about(results),
            "## The paper's findings",
            _findings(results),
            "## What the paper leaves open",
            _answers(results),
            "## Bits per byte by factor and method",
            "Change to dropless. The random policy is the mean of"
            f" {len(results.scale.seeds)} seeds; {_seeds(results)}.",
            tables.overview(results),
            "## Layers",
            tables.layers(results),
            "## Every setting",
            tables.everything(results),
        ]
    )


def _about(results: Results) -> str:
    tree, minutes = results.tree, {k: v / 60 for k, v in results.tree["seconds"].items()}
    text = tree["text"]
    files = text["files"]
    names = ", ".join(file["name"].removesuffix(".py") for file in files)
    versions = ", ".join(f"{name} {number}" for name, number in tree["versions"].items() if number)
    rows = {
        "text": f"the first {text['bytes_each']:,} bytes of {len(files)} held-out files ({names}):"
        f" {sum(file['bytes'] for file in files):,} bytes in windows of {text['window']}",
        "forward passes": f"{tree['batches']} of {text['batch_tokens']} tokens for each of"
        f" {len(tree['lines'])} settings",
        "devices": f"{DEVICES} simulated, {EXPERTS // DEVICES} experts each; each rank bounds the"
        " load of its own tokens unless the table says one rank",
        "dropless": f"{results.bits(OWN):.4f} bits per byte; Transformers' own blocks"
        f" {results.transformers_bits():.4f}",
        "run": f"{tree['date'][:10]}, one thread of {tree['machine']['cpu']}, {tree['dtype']},"
        f" {minutes['processor']:.0f} minutes of processor time ({minutes['wall']:.0f} by the"
        " clock)",
        "versions": versions,
    }
    return text_table(["what", ""], [[what, said] for what, said in rows.items()])


def _findings(results: Results) -> str:
    found = of_the_paper(results)
    counts = Counter(each.mark for each in found)
    said = ", ".join(f"{number} {mark}" for mark, number in counts.items())
    body = [[f"**{each.mark}**", each.claim, each.rule, each.evidence] for each in found]
    header = ["", "what the paper says", "seen if", "here"]
    return f"Of {len(found)}: {said}.\n\n" + text_table(header, body)


def _answers(results: Results) -> str:
    body = [[question, answer] for question, answer in beyond_the_paper(results)]
    return text_table(["question", "here"], body)


def _seeds(results: Results) -> str:
    spreads = [
        results.seeds_spread(case)
        for case in results.cases
        if case.capacity is not None and case.capacity.policy == "random"
    ]
    return f"the worst and the best seed are at most {max(spreads):.3f} apart"
