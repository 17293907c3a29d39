"""Files of random words and a tiny model for them, for the tests of ``capmoe calibrate``."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from typer.testing import CliRunner

from capmoe_kernels.cli.app import app
from tiny_model import save_tiny

FILES = 12
GRID = "4,3,2.5,2,1.5,1"
WORDS = re.findall(
    r"\w+", "when the expert sees a token twice, déjà vu, 見る, the others wait for it"
)


def capmoe(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def make_folder(folder: Path) -> Path:
    """A model and files of random words, so that a file says something about another."""
    save_tiny(folder / "tiny")
    random = torch.Generator().manual_seed(7)
    (folder / "texts").mkdir()
    for number in range(FILES):
        picked = torch.randint(0, len(WORDS), (60,), generator=random).tolist()
        text = " ".join(WORDS[at] for at in picked)
        (folder / "texts" / f"{number:02}.txt").write_text(text)
    (folder / "long.txt").write_text(" ".join(WORDS * 80))
    (folder / "short.txt").write_text(" ".join(WORDS * 5))
    (folder / "vacant").mkdir()
    (folder / "again").mkdir()
    (folder / "again" / "copy.txt").write_text((folder / "texts" / "03.txt").read_text())
    return folder
