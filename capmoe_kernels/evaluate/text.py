"""Text files, and the token windows a model reads them in."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError

_NO_TARGET = -100


@dataclass(frozen=True)
class Document:
    """One file: its tokens, and the bytes that the predicted ones of them stand for."""

    path: Path
    tokens: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows that go through the model together; shorter ones are padded on the right.

    Attributes:
        input_ids: [B, S] int64.
        targets: [B, S] int64, the token after each input; -100 at padding.
        documents: [B] int64, which document each window is from.
    """

    input_ids: Tensor
    targets: Tensor
    documents: Tensor

    @property
    def token_mask(self) -> Tensor:
        """[B, S] bool: True where the token is real."""
        return self.targets != _NO_TARGET

    @property
    def num_tokens(self) -> int:
        return int(self.token_mask.sum())


def read_texts(paths: Sequence[Path], max_bytes: int | None = None) -> list[tuple[Path, str]]:
    """Files, and the UTF-8 files of folders, each cut to ``max_bytes``, without the empty ones.

    Raises:
        UsageError: a path is missing, a named file is not UTF-8, or nothing is left.
    """
    texts = []
    for path in paths:
        if path.is_dir():
            texts += [(file, _read(file, max_bytes)) for file in _files(path)]
        elif not path.exists():
            raise UsageError(f"--text {path}: no such file or folder")
        elif (text := _read(path, max_bytes)) is None:
            raise UsageError(f"--text {path}: not a readable UTF-8 text file")
        else:
            texts.append((path, text))
    # A file that is named twice, or in a folder too, would count twice in the error bars.
    once = {path.resolve(): (path, text) for path, text in reversed(texts)}
    kept = [(path, text) for path, text in reversed(once.values()) if text]
    if not kept:
        raise UsageError(f"--text {', '.join(map(str, paths))}: no text in it")
    return kept


def _files(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, in a fixed order, without what is hidden."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _read(path: Path, max_bytes: int | None) -> str | None:
    """The text, None where it is not UTF-8 or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(-1 if max_bytes is None else max_bytes)
        # A cut may fall within a character: incremental decoding leaves such an end out.
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=max_bytes is None)
    except (OSError, UnicodeDecodeError):
        return None


def tokenize(texts: Iterable[tuple[Path, str]], tokenizer: Any) -> list[Document]:
    """Documents of at least two tokens, the separator that begins each one counted.

    A document begins with the tokenizer's first-token or end-of-text token, where it has one, so
    that every byte is predicted; without one its first token is not.

    Raises:
        UsageError: no document has two tokens.
    """
    separator = tokenizer.bos_token_id
    if separator is None:
        separator = tokenizer.eos_token_id
    documents = []
    for path, text in texts:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        num_bytes = len(text.encode())
        if separator is not None:
            tokens = [separator, *tokens]
        else:
            num_bytes -= len(tokenizer.decode(tokens[:1]).encode())
        if len(tokens) >= 2 and num_bytes > 0:
            documents.append(Document(path, tuple(tokens), num_bytes))
    if not documents:
        raise UsageError("the text is shorter than two tokens: there is nothing to predict")
    return documents


def make_batches(
    documents: Sequence[Document], window: int, batch_tokens: int, filler: int = 0
) -> list[Batch]:
    """Cut every document into windows of ``window`` inputs and group them, in order.

    Every token after a document's first is a target once. A batch is at most ``batch_tokens`` with
    its padding, but at least one window.
    """
    batches = []
    group: list[tuple[int, tuple[int, ...]]] = []
    for index, document in enumerate(documents):
        for start in range(0, len(document.tokens) - 1, window):
            piece = document.tokens[start : start + window + 1]
            longest = max([len(piece), *(len(other) for _, other in group)]) - 1
            if group and (len(group) + 1) * longest > batch_tokens:
                batches.append(_stack(group, filler))
                group = []
            group.append((index, piece))
    batches.append(_stack(group, filler))
    return batches


def _stack(group: Sequence[tuple[int, tuple[int, ...]]], filler: int) -> Batch:
    length = max(len(piece) for _, piece in group) - 1
    input_ids = torch.full((len(group), length), filler)
    targets = torch.full((len(group), length), _NO_TARGET)
    for row, (_, piece) in enumerate(group):
        input_ids[row, : len(piece) - 1] = torch.tensor(piece[:-1])
        targets[row, : len(piece) - 1] = torch.tensor(piece[1:])
    return Batch(input_ids, targets, torch.tensor([index for index, _ in group]))
