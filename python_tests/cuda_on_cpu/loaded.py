"""A module as it is loaded: its .global and .const variables have memory and initial values."""

from __future__ import annotations

import ctypes
import functools
import re

from . import gpu
from .errors import Unsupported
from .parse import SIZES, Module, Variable


class Loaded:
    """A module with its .global and .const variables in memory."""

    def __init__(self, module: Module, ptx: str):
        self.module, self.ptx = module, ptx
        self.memory: dict[str, ctypes.Array[ctypes.c_char]] = {}
        for variable in module.variables.values():
            if variable.space in ("global", "const"):
                size = variable.size + variable.alignment
                self.memory[variable.name] = ctypes.create_string_buffer(size)
        for name in self.memory:
            data = self.initial(module.variables[name])
            ctypes.memmove(self.address(name), data, len(data))

    @functools.cached_property
    def on_gpu(self) -> gpu.Module:
        return gpu.Module(self.ptx)

    def address(self, name: str) -> int:
        alignment = self.module.variables[name].alignment
        return -(-ctypes.addressof(self.memory[name]) // alignment) * alignment

    def initial(self, variable: Variable) -> bytes:
        out = b""
        size = SIZES[variable.element]
        for text in variable.data:
            if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
                value = int(text[2:], 16)
            elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", text):
                value = int(text, 0)
            elif text in self.memory:
                value = self.address(text)
            else:
                raise Unsupported(f"initial value {text} of {variable.name}")
            out += (value & (256**size - 1)).to_bytes(size, "little")
        if len(out) > variable.size:
            raise Unsupported(f"{len(out)} bytes for {variable.name}, which has {variable.size}")
        return out
