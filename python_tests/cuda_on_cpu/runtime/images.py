"""Which PTX of a fat binary a device runs, as CUDA's driver chooses."""

from __future__ import annotations

import re

from ..errors import BadLaunch


def target_of(ptx: str) -> str:
    return re.search(r"^\s*\.target\s+(sm_\w+)", ptx, re.MULTILINE)[1]


def runs_on(target: str, arch: str) -> bool:
    """sm_90a is for compute capability 9.0 alone, sm_100f for its family, sm_80 for 8.0 and on."""
    number, suffix = re.fullmatch(r"sm_(\d+)([af]?)", target).groups()
    own = int(arch[3:])
    if suffix == "a":
        return int(number) == own
    if suffix == "f":
        return int(number) <= own and int(number) // 10 == own // 10
    return int(number) <= own


def choose(texts: list[str], arch: str) -> str:
    """The PTX that comes nearest to ``arch``.

    Raises:
        BadLaunch: none of them runs there.
    """
    targets = {target_of(text): text for text in texts}
    fitting = [target for target in targets if runs_on(target, arch)]
    if not fitting:
        found = ", ".join(targets) or "no PTX"
        raise BadLaunch(f"no kernel image for {arch}: the fat binary has {found}")
    nearest = max(fitting, key=lambda t: (int(re.search(r"\d+", t)[0]), t[-1].isalpha()))
    return targets[nearest]
