"""Arrays of other libraries: anything with ``__dlpack__`` in, the caller's kind of array out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.dlpack import from_dlpack

P = ParamSpec("P")
R = TypeVar("R")


def accepts_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Let ``function`` of torch tensors take NumPy, CuPy or JAX arrays, and return that kind.

    The arrays are shared through DLPack, not copied. Tensors pass untouched.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or not _any_foreign((*args, *kwargs.values())):
            return function(*args, **kwargs)
        library: list[Any] = []

        def to_torch(value: Any) -> Any:
            if not _is_foreign(value):
                return value
            if not library:
                library.append(_namespace(value))
            if min(getattr(value, "strides", None) or (0,)) < 0:
                # torch aborts the process on one.
                raise ValueError(
                    "an array must not have negative strides, such as a[::-1]: copy it"
                )
            return from_dlpack(value)

        args, kwargs = pytree.tree_map(to_torch, (args, kwargs))
        result = function(*args, **kwargs)
        mapped: R = pytree.tree_map_only(Tensor, library[0].from_dlpack, result)
        return mapped

    return wrapper


def _is_foreign(value: Any) -> bool:
    return hasattr(value, "__dlpack__") and not isinstance(value, Tensor)


def _any_foreign(values: Iterable[Any]) -> bool:
    return any(
        _any_foreign(value) if isinstance(value, tuple) else _is_foreign(value) for value in values
    )


def _namespace(array: Any) -> Any:
    """The array library's own module, by the array API standard."""
    if not hasattr(array, "__array_namespace__"):
        raise TypeError(
            f"{type(array).__name__} has __dlpack__ but no __array_namespace__, so there is no way"
            " to return its kind of array: pass a torch tensor"
        )
    return array.__array_namespace__()
