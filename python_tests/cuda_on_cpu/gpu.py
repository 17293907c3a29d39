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
from typing import NamedTuple

import torch

from . import gpu_launch
from .arguments import Const, Empty, TensorMap, pack
from .options import Agreement, Options
from .parse import Variable

ATTRIBUTE_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
ALIGNMENT = 256  # of what cuMemAlloc returns
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


def can_run(target: str, wanted: Options) -> bool:
    """Whether the launch can be repeated there: other memory than tensors is not known to it."""
    return bool(wanted.on_gpu) and not wanted.buffers and runs(target)


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


def tensor_of(value) -> torch.Tensor | None:
    """The tensor of an argument that is one, in whatever wrapping; None for others."""
    inner = value.tensor if isinstance(value, Const | Empty) else value
    return inner if isinstance(inner, torch.Tensor) else None


def tensors_of(value) -> list[torch.Tensor]:
    """The tensors whose memory an argument gives to a kernel."""
    wrapped = value.tensors if isinstance(value, TensorMap) else [value]
    return [tensor for tensor in map(tensor_of, wrapped) if tensor is not None]


class Copy(NamedTuple):
    """Of a storage, ``at`` an address that is aligned as the storage's own."""

    storage: torch.UntypedStorage
    allocated: ctypes.c_void_p
    at: ctypes.c_void_p


class Twin:
    """One launch on the GPU. Made before the emulator runs, while the tensors hold what goes in.

    The PTX is compiled after that: what the emulator finds fault with, ptxas may refuse.
    """

    def __init__(self, name: str, variables: list[Variable], args: tuple):
        self.name, self.variables, self.args = name, variables, args
        self.cuda = driver()
        assert self.cuda is not None
        self.device: dict[int, Copy] = {}  # by the address of the storage
        for value in args:
            for tensor in tensors_of(value):
                self._upload(tensor.untyped_storage())

    def _upload(self, storage: torch.UntypedStorage) -> None:
        base, size = storage.data_ptr(), storage.nbytes()
        if not size or base in self.device:
            return
        cuda, allocated = self.cuda, ctypes.c_void_p()
        room = ctypes.c_size_t(size + ALIGNMENT)
        check(cuda, cuda.cuMemAlloc_v2(ctypes.byref(allocated), room))
        at = ctypes.c_void_p((allocated.value or 0) + base % ALIGNMENT)
        self.device[base] = Copy(storage, allocated, at)
        check(cuda, cuda.cuMemcpyHtoD_v2(at, ctypes.c_void_p(base), ctypes.c_size_t(size)))

    def _there(self, address: int) -> int:
        """Where a byte of a tensor is on the GPU."""
        for base, copy in self.device.items():
            if base <= address < base + copy.storage.nbytes():
                return (copy.at.value or 0) + address - base
        raise ValueError(f"no tensor of the launch has the address {address:#x}")

    def _parameter(self, variable: Variable, value) -> bytes:
        if isinstance(value, TensorMap):
            error, data = gpu_launch.encode(self.cuda, value, self._there)
            check(self.cuda, error)
            return data
        tensor = tensor_of(value)
        if tensor is None:
            return pack(variable, value, [])
        base = tensor.untyped_storage().data_ptr()
        if base not in self.device:  # empty
            return bytes(8)
        address = self.device[base].at.value or 0
        return (address + tensor.data_ptr() - base).to_bytes(8, "little")

    def free(self) -> None:
        for copy in self.device.values():
            self.cuda.cuMemFree_v2(copy.allocated)
        self.device.clear()

    def confirm(self, module: Module, grid, block, dynamic_shared: int, wanted: Options) -> None:
        """Raises MismatchError where the tensors, which the emulator wrote, do not agree."""
        self._run(module, grid, block, dynamic_shared, wanted)
        for number, value in enumerate(self.args):
            agreement: Agreement = wanted.on_gpu
            if isinstance(agreement, dict):
                agreement = agreement.get(number, True)
            for tensor in tensors_of(value):
                if tensor.numel() and agreement:
                    self._compare(number, tensor, agreement)

    def _run(self, module: Module, grid, block, dynamic_shared: int, wanted: Options) -> None:
        cuda = self.cuda
        texts = [self._parameter(*p) for p in zip(self.variables, self.args, strict=True)]
        held = [ctypes.create_string_buffer(text, max(len(text), 1)) for text in texts]
        pointers = (ctypes.c_void_p * max(len(held), 1))(*map(ctypes.addressof, held))
        function = module.function(self.name, dynamic_shared)
        check(cuda, gpu_launch.start(cuda, function, grid, block, dynamic_shared, wanted, pointers))
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
        storage, _, at = self.device[ours.untyped_storage().data_ptr()]
        copy = torch.UntypedStorage(storage.nbytes())
        cuda, size = self.cuda, ctypes.c_size_t(storage.nbytes())
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
