"""CPU tensors as device memory for the length of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..arguments import Const
from .problems import take_problem
from .standin import load


@contextlib.contextmanager
def raising_problems() -> Iterator[None]:
    """Raises what the emulator found within, whether or not the C++ code looked at its code."""
    take_problem()
    try:
        yield
    except RuntimeError as error:  # of a binding that has looked at its code
        problem = take_problem()
        if problem is None:
            raise
        raise problem from error
    finally:
        load().standin_forget_errors()
    problem = take_problem()
    if problem is not None:
        raise problem


@contextlib.contextmanager
def device_memory(*tensors: torch.Tensor | Const) -> Iterator[None]:
    """Kernels launched within may touch these tensors' storages, and write those not ``Const``.

    Raises:
        EmulationError: what the emulator found in a kernel launched within.
    """
    standin, added = load(), []
    try:
        for tensor in tensors:
            read_only = isinstance(tensor, Const)
            storage = (tensor.tensor if read_only else tensor).untyped_storage()
            if standin.standin_add_tensor(storage.data_ptr(), storage.nbytes(), read_only):
                added.append(storage.data_ptr())
        with raising_problems():
            yield
    finally:
        for base in added:
            standin.standin_drop_tensor(base)
