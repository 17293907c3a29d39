"""Runs CUDA kernels without a GPU: their PTX, 32 lanes at a time, with checks and counts."""

from .arguments import Const, Empty
from .build import compile_cuda
from .emulate import Kernel, Report, emulate

__all__ = ["Const", "Empty", "Kernel", "Report", "compile_cuda", "emulate"]
