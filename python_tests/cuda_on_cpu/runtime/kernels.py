"""The kernels that opened libraries have registered."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from .launches import _loaded, ptx_of
from .standin import load


class Registered(NamedTuple):
    module: int
    symbol: str

    def has_code(self, arch: str) -> bool:
        """Whether it does anything on ``arch``: a build may hold an empty one for others."""
        entry = _loaded(ptx_of(load(), self.module, arch)).module.functions[self.symbol]
        return [statement.text for statement in entry.body] != ["ret"]


def registered_kernels() -> list[Registered]:
    standin, out = load(), []
    module, name = ctypes.c_void_p(), ctypes.c_char_p()
    places = (ctypes.byref(module), ctypes.byref(name))
    while standin.standin_kernel(ctypes.c_uint64(len(out)), *places):
        out.append(Registered(module.value, name.value.decode()))
    return out
