"""The command's own dependencies, which the library does without."""

from __future__ import annotations

from importlib.util import find_spec

EVALUATION = ("transformers", "safetensors", "matplotlib")


class MissingPackage(Exception):  # noqa: N818  it names what is wrong
    """A package of the ``cli`` extra is not installed."""


def need(*packages: str) -> None:
    """Raise MissingPackage, naming the extra, unless all are installed; imports nothing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackage(
            f"{', '.join(missing)} is not installed: pip install 'capmoe-kernels[cli]'"
        )
