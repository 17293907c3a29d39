"""Opens libraries of launchers, whose calls go to the stand-in whatever else is loaded."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from .standin import load


def open_library(path: Path) -> ctypes.CDLL:
    """A library that is linked with the stand-in.

    Its symbols are looked for in the libraries that it needs before any other: a torch built for
    CUDA has loaded the real libcudart for everybody.
    """
    load()
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)
