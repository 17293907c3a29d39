"""Text in two parts: one that chooses the factors, and one that judges them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from ..evaluate.errors import UsageError
from ..evaluate.text import Batch

Texts: TypeAlias = list[tuple[Path, str]]

# Fewer documents than this in a part, and their spread says little.
FEWEST = 5
# Pieces of both parts together where there are fewer files.
_PIECES = 20
# A piece this short is mostly its beginning.
_SHORTEST = 256


def split(texts: Texts) -> tuple[Texts, Texts]:
    """(calibration, validation): every other file, or where there are few, the halves of each.

    With at least ten files a document is a file, and the first, third, ... validate. With fewer,
    each is cut into equal pieces, 20 or more in all; those of its first half calibrate, those of
    the second validate. The pieces then are the documents, which understates how much a text like
    this varies from file to file.

    Raises:
        UsageError: the text is too little, and by how much; or two files have the same.
    """
    _check_different(texts)
    if len(texts) >= 2 * FEWEST:
        return texts[1::2], texts[::2]
    half = math.ceil(_PIECES / 2 / len(texts))
    shortest = min(len(text) for _, text in texts)
    if shortest < 2 * half * _SHORTEST:
        raise UsageError(
            f"--text: too little to calibrate and to validate on: {_files(len(texts))} must have at"
            f" least {2 * half * _SHORTEST} characters each, got {shortest};"
            f" or give {2 * FEWEST} files or more"
        )
    cut = [(path, _pieces(text, 2 * half)) for path, text in texts]
    first = [(path, piece) for path, pieces in cut for piece in pieces[:half]]
    second = [(path, piece) for path, pieces in cut for piece in pieces[half:]]
    return first, second


def check_documents(number: int) -> None:
    """Raise UsageError for a part of too few documents: some may be too short to predict."""
    if number < FEWEST:
        raise UsageError(
            f"--text: only {number} of a part's documents have two tokens; give more text, at least"
            f" {FEWEST} such documents are needed to calibrate and {FEWEST} others to validate"
        )


def sample(batches: Sequence[Batch], num_tokens: int) -> list[Batch]:
    """Batches of about ``num_tokens`` in all, evenly among ``batches``; at least one."""
    total = sum(batch.num_tokens for batch in batches)
    count = max(1, min(len(batches), round(num_tokens * len(batches) / total)))
    return [batches[at * len(batches) // count] for at in range(count)]


def _check_different(texts: Texts) -> None:
    """The same text in both parts would judge what it has chosen."""
    seen: dict[str, Path] = {}
    for path, text in texts:
        other = seen.setdefault(text, path)
        if other != path:
            raise UsageError(
                f"--text: {other} and {path} have the same text: leave one of them out"
            )


def _pieces(text: str, number: int) -> list[str]:
    ends = [len(text) * at // number for at in range(number + 1)]
    return [text[start:end] for start, end in pairwise(ends)]


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"
