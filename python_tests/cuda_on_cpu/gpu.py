"""The same launch on a real GPU, where there is one: what the emulator says must be true there.

``emulate`` calls this for every launch that ended without a fault. The CUDA driver compiles the
same PTX text and runs it on copies of the same tensors; the memory after it must agree.
``CAPMOE_TEST_GPU=0`` turns it off.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re

import torch

from .arguments import Const, TensorMap, pack
from .options import Agreement, Options
from .parse import Variable

ATTRIBUTE_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class MismatchError(AssertionError):
    """The GPU left other values in a tensor than the emulator."""


@functools.cache
def driver() -> ctypes.CDLL | None:
    """libcuda with a current context; None where there is no GPU, or nobody wants it."""
    if os.environ.get("CAPMOE_TEST_GPU") == "0":
        return None
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    context = ctypes.c_void_p()
    check(cuda, cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    check(cuda, cuda.cuCtxSetCurrent(context))
    return cuda


def check(cuda: ctypes.CDLL, error: int) -> None:
    if error:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(error, ctypes.byref(text))
        raise RuntimeError(f"the CUDA driver says {(text.value or b'?').decode()} ({error})")


@functools.cache
def capability() -> int:
    """90 for sm_90; 0 without a GPU."""
    cuda = driver()
    if cuda is None:
        return 0
    parts = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        check(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0))
        parts.append(value.value)
    return 10 * parts[0] + parts[1]


def runs(target: str) -> bool:
    """Whether the GPU at hand runs PTX for ``target``. sm_90a is for sm_90 alone."""
    wanted = int("".join(c for c in target if c.isdigit()))
    return capability() == wanted if target[-1] in "af" else capability() >= wanted > 0


def can_run(target: str, args: tuple, wanted: Options) -> bool:
    """Whether the launch can be repeated there: other memory than tensors is not known to it."""
    plain = not (wanted.buffers or wanted.cluster or wanted.cooperative)
    maps = any(isinstance(value, TensorMap) for value in args)
    return bool(wanted.on_gpu) and plain and not maps and runs(target)


class Module:
    """A PTX module on the GPU. Like the emulator's, it keeps .global variables between launches."""

    def __init__(self, ptx: str):
        cuda = driver()
        assert cuda is not None
        self.cuda, self.handle = cuda, ctypes.c_void_p()
        text = re.sub(r"(?m)^\s*\.(loc|file)\b.*$", "", ptx)  # of no use there
        check(cuda, cuda.cuModuleLoadData(ctypes.byref(self.handle), text.encode() + b"\0"))

    def function(self, name: str, dynamic_shared: int) -> ctypes.c_void_p:
        out = ctypes.c_void_p()
        check(
            self.cuda, self.cuda.cuModuleGetFunction(ctypes.byref(out), self.handle, name.encode())
        )
        attribute = ATTRIBUTE_MAX_DYNAMIC_SHARED
        check(self.cuda, self.cuda.cuFuncSetAttribute(out, attribute, dynamic_shared))
        return out


class Twin:
    """One launch on the GPU. Made before the emulator runs, while the tensors hold what goes in."""

    def __init__(self, module: Module, name: str, variables: list[Variable], args: tuple):
        self.module, self.name, self.variables, self.args = module, name, variables, args
        self.device: dict[int, tuple[torch.UntypedStorage, ctypes.c_void_p]] = {}
        for value in args:
            tensor = value.tensor if isinstance(value, Const) else value
            if isinstance(tensor, torch.Tensor):
                self._upload(tensor.untyped_storage())

    def _upload(self, storage: torch.UntypedStorage) -> None:
        base, size = storage.data_ptr(), storage.nbytes()
        if not size or base in self.device:
            return
        cuda, at = self.module.cuda, ctypes.c_void_p()
        check(cuda, cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(size)))
        self.device[base] = (storage, at)
        check(cuda, cuda.cuMemcpyHtoD_v2(at, ctypes.c_void_p(base), ctypes.c_size_t(size)))

    def _parameter(self, variable: Variable, value) -> bytes:
        tensor = value.tensor if isinstance(value, Const) else value
        if not isinstance(tensor, torch.Tensor):
            return pack(variable, value, [])
        base = tensor.untyped_storage().data_ptr()
        if base not in self.device:  # empty
            return bytes(8)
        address = self.device[base][1].value or 0
        return (address + tensor.data_ptr() - base).to_bytes(8, "little")

    def confirm(self, grid, block, dynamic_shared: int, agreement: Agreement) -> None:
        """Raises MismatchError where the tensors, which the emulator wrote, do not agree."""
        try:
            self._run(grid, block, dynamic_shared)
            for number, value in enumerate(self.args):
                tensor = value.tensor if isinstance(value, Const) else value
                wanted = agreement
                if isinstance(agreement, dict):
                    wanted = agreement.get(number, True)
                if isinstance(tensor, torch.Tensor) and tensor.numel() and wanted:
                    self._compare(number, tensor, wanted)
        finally:
            for _, at in self.device.values():
                self.module.cuda.cuMemFree_v2(at)

    def _run(self, grid, block, dynamic_shared: int) -> None:
        cuda = self.module.cuda
        texts = [self._parameter(*p) for p in zip(self.variables, self.args, strict=True)]
        held = [ctypes.create_string_buffer(text, max(len(text), 1)) for text in texts]
        pointers = (ctypes.c_void_p * max(len(held), 1))(*map(ctypes.addressof, held))
        function = self.module.function(self.name, dynamic_shared)
        check(
            cuda,
            cuda.cuLaunchKernel(function, *grid, *block, dynamic_shared, None, pointers, None),
        )
        check(cuda, cuda.cuCtxSynchronize())

    def _compare(self, number: int, ours: torch.Tensor, wanted: bool | float) -> None:
        theirs = self._download(ours)
        different = (bits_of(ours) != bits_of(theirs)).any(1)
        if ours.is_floating_point():
            a, b = ours.reshape(-1).double(), theirs.reshape(-1).double()
            different &= ~(a.isnan() & b.isnan())  # whose payload is nobody's promise
            if wanted is not True:
                relative = max(wanted, 2 * torch.finfo(ours.dtype).eps)
                different &= ~torch.isclose(a, b, rtol=relative, atol=wanted)
        if different.any():
            raise MismatchError(_difference(self.name, number, ours, theirs, different))

    def _download(self, ours: torch.Tensor) -> torch.Tensor:
        storage, at = self.device[ours.untyped_storage().data_ptr()]
        copy = torch.UntypedStorage(storage.nbytes())
        cuda, size = self.module.cuda, ctypes.c_size_t(storage.nbytes())
        check(cuda, cuda.cuMemcpyDtoH_v2(ctypes.c_void_p(copy.data_ptr()), at, size))
        like = torch.empty(0, dtype=ours.dtype)
        return like.set_(copy, ours.storage_offset(), ours.shape, ours.stride())


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """[values, bytes] uint8."""
    return tensor.reshape(-1).view(torch.uint8).view(tensor.numel(), -1)


def _difference(name: str, number: int, ours, theirs, different: torch.Tensor) -> str:
    where = different.nonzero().flatten()
    first = int(where[0])
    shown = [
        f"{t.reshape(-1)[first].item()} (0x{bits_of(t)[first].numpy()[::-1].tobytes().hex()})"
        for t in (ours, theirs)
    ]
    return (
        f"{name}, argument {number}: {len(where)} of {ours.numel()} values differ, first {first}:"
        f" emulated {shown[0]}, on the GPU {shown[1]}"
    )
