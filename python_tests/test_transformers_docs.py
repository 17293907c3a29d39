"""The program at the top of docs/transformers.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "transformers.md"


def test_the_program_runs(capsys):
    program = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(program, str(PAGE), "exec"), {})
    out = capsys.readouterr().out
    with capsys.disabled():
        print(out)
    asked, took = (int(line.rsplit(" ", 1)[1]) for line in out.splitlines()[-2:])
    assert 0 < took < asked
