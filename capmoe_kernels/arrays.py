"""Arrays of other libraries: anything with ``__dlpack__`` in, the caller's kind of array out."""

from __future__ import annotations

import functools
import inspect
import sys
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

    The first argument that is no torch tensor, in the order of the signature, decides which kind.
    The arrays are shared through DLPack, not copied. Tensors pass untouched.
    """
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or not _any_foreign((*args, *kwargs.values())):
            return function(*args, **kwargs)
        if len(args) > len(names) or not kwargs.keys() <= set(names):
            return function(*args, **kwargs)  # which says what is wrong with the call
        ordered = (*args, *(kwargs[name] for name in names if name in kwargs))
        library = _namespace(next(x for value in ordered for x in _leaves(value) if is_foreign(x)))
        shared: Any = [_shared(name, value) for name, value in zip(names, args, strict=False)]
        named: Any = {name: _shared(name, value) for name, value in kwargs.items()}
        result = function(*shared, **named)
        mapped: R = pytree.tree_map_only(Tensor, lambda x: _to_array(x, library), result)
        return mapped

    return wrapper


def is_foreign(value: Any) -> bool:
    return not isinstance(value, Tensor) and hasattr(value, "__dlpack__")


def to_tensor(name: str, array: Any) -> Tensor:
    """The memory of ``array``, as a torch tensor; ``name`` is what errors call it.

    Raises:
        TypeError, ValueError: it is traced by ``jax.jit``, or its dtype, layout or memory cannot be
            shared with torch.
    """
    if is_traced(array):
        raise TypeError(
            f"{name} is traced by JAX, so it holds no numbers yet: inside jax.jit call the"
            " functions of capmoe_kernels.integrations.jax"
        )
    if min(getattr(array, "strides", None) or (0,)) < 0:
        # torch aborts the process on one.
        raise ValueError(f"{name} must not have negative strides, such as a[::-1]: copy it")
    if type(array).__name__ in ("MaskedArray", "matrix"):
        raise TypeError(
            f"{name} must be a plain array, got {type(array).__name__}, whose meaning would be lost"
        )
    bfloat16 = _is_numpy_bfloat16(array)
    try:
        tensor: Tensor = from_dlpack(array.view("uint16") if bfloat16 else array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be shared with torch through DLPack: {error}") from error
    if tensor.data_ptr() % tensor.element_size():
        raise ValueError(f"{name} must be aligned to its elements' size in memory: copy it")
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


def is_traced(value: Any) -> bool:
    """Whether ``value`` stands for a JAX array within ``jax.jit``, ``jax.vmap`` or ``jax.grad``."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _leaves(value: Any) -> tuple[Any, ...]:
    """The arrays of an argument: a routing's fields, else the argument itself."""
    return value if isinstance(value, tuple) else (value,)


def _any_foreign(values: Iterable[Any]) -> bool:
    return any(
        _any_foreign(value) if isinstance(value, tuple) else is_foreign(value) for value in values
    )


def _shared(name: str, value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value, strict=True)
        return type(value)(*(_shared(f"{name}.{field}", x) for field, x in fields))
    return to_tensor(name, value) if is_foreign(value) else value


def _namespace(array: Any) -> Any:
    """The array library's own module, by the array API standard."""
    if not hasattr(array, "__array_namespace__"):
        raise TypeError(
            f"{type(array).__name__} has __dlpack__ but no __array_namespace__, so there is no way"
            " to return its kind of array: pass a torch tensor"
        )
    return array.__array_namespace__()


def _to_array(tensor: Tensor, library: Any) -> Any:
    if library.__name__ == "numpy" and tensor.dtype == torch.bfloat16:
        from ml_dtypes import bfloat16

        return library.from_dlpack(tensor.view(torch.uint16)).view(bfloat16)
    return library.from_dlpack(tensor)


def _is_numpy_bfloat16(array: Any) -> bool:
    """NumPy has bfloat16 by ml_dtypes, but DLPack of NumPy does not."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(array, numpy.ndarray):
        return False
    return str(array.dtype) == "bfloat16"
