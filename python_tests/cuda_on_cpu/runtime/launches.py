"""A launch that the stand-in was asked for, as a launch of the emulator."""

from __future__ import annotations

import ctypes
import functools
import re

from ..emulate import Kernel
from ..errors import BadLaunch, Unsupported
from ..loaded import Loaded
from ..parse import parse
from ..structs import Buffer
from .images import choose
from .ptxas import resources
from .record import LaunchRecord, options, records

DEFAULT_SHARED = 48 * 1024  # static and dynamic, of a kernel that has not asked for more


class Image(ctypes.Structure):
    _fields_ = (
        ("text", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("compressed", ctypes.c_int32),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("module", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_uint32 * 3) for name in ("grid", "block", "cluster")),
        ("dynamic_shared", ctypes.c_uint64),
        ("allowed_dynamic_shared", ctypes.c_int64),
        ("cooperative", ctypes.c_int32),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
    )


@functools.cache
def ptx_of(standin: ctypes.CDLL, module: int, arch: str) -> str:
    """The text that a registered fat binary has for ``arch``."""
    first = ctypes.POINTER(Image)()
    count = standin.standin_images(ctypes.c_void_p(module), ctypes.byref(first))
    images = [first[k] for k in range(count)]
    if any(image.compressed for image in images):
        raise Unsupported("compressed PTX in a fat binary: compile with nvcc --no-compress")
    texts = [ctypes.string_at(i.text, i.size).rstrip(b"\0").decode() for i in images]
    return choose(texts, arch)


@functools.cache
def _loaded(ptx: str) -> Loaded:
    return Loaded(parse(ptx), ptx)


@functools.cache
def runnable_kernel(ptx: str, name: str, arch: str) -> Kernel:
    """A kernel with the limits of ``arch``; those of one module share its variables."""
    loaded = _loaded(ptx)
    target = loaded.module.target
    return Kernel(loaded, name, target if target.startswith(arch) else arch)


def symbol_address(standin: ctypes.CDLL, module: int, name: str) -> int:
    return _loaded(ptx_of(standin, module, options().arch)).address(name)


def static_facts(standin, module: int, name: str, with_registers: bool) -> dict[str, int]:
    """The fields of KernelFacts; registers and local memory cost a run of ptxas."""
    arch = options().arch
    ptx = ptx_of(standin, module, arch)
    kernel = runnable_kernel(ptx, name, arch)
    registers, local = resources(ptx, arch)[name] if with_registers else (0, 0)
    bound = re.search(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", kernel.entry.directives)
    threads = 1024
    for number in bound[1].replace(" ", "").rstrip(",").split(",") if bound else ():
        threads = int(number) * (1 if threads == 1024 else threads)
    return {
        "static_shared": kernel.lowering.static_shared,
        "local_bytes": local,
        "const_bytes": sum(
            v.size for v in kernel.loaded.module.variables.values() if v.space == "const"
        ),
        "registers": registers,
        "max_threads": threads,
        "ptx_version": int(re.sub(r"\D", "", kernel.loaded.module.target)),  # 80 of sm_80
    }


class Extent(ctypes.Structure):
    """Of cudart/buffers.cpp."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("read_only", ctypes.c_int32),
        ("pad", ctypes.c_int32),
        ("written", ctypes.c_void_p),
    )


def current_buffers(standin: ctypes.CDLL) -> list[Buffer]:
    """All that device code may touch."""
    room = standin.standin_buffers(None, ctypes.c_uint64(0))
    array = (Extent * max(room, 1))()
    standin.standin_buffers(array, ctypes.c_uint64(room))
    buffers = []
    for extent in array[:room]:
        buffer = Buffer(extent.base, extent.size, extent.read_only)
        buffer.written = extent.written
        buffers.append(buffer)
    return buffers


def read_arguments(kernel: Kernel, args) -> list[bytes]:
    values = []
    for k, variable in enumerate(kernel.entry.params):
        if not args[k]:
            raise BadLaunch(f"argument {k} of {kernel.name} is not there")
        values.append(ctypes.string_at(args[k], variable.size))
    return values


def check_shared(kernel: Kernel, dynamic: int, allowed: int) -> None:
    static = kernel.lowering.static_shared
    default = max(DEFAULT_SHARED - static, 0)
    if dynamic > max(allowed, default):
        raise BadLaunch(
            f"{kernel.name} launched with {dynamic} bytes of dynamic shared memory; without"
            f" cudaFuncSetAttribute(cudaFuncAttributeMaxDynamicSharedMemorySize) it may have"
            f" {default}" + (f", and it was set to {allowed}" if allowed >= 0 else "")
        )


def launch(standin: ctypes.CDLL, request: Request) -> None:
    """Runs the kernel that a launcher asked for.

    Raises:
        EmulationError: what the emulator finds, or a launch that CUDA would refuse.
    """
    arch, name = options().arch, request.name.decode()
    kernel = runnable_kernel(ptx_of(standin, request.module, arch), name, arch)
    check_shared(kernel, request.dynamic_shared, request.allowed_dynamic_shared)
    run_kernel(
        kernel,
        tuple(request.grid),
        tuple(request.block),
        read_arguments(kernel, request.args),
        request.dynamic_shared,
        cluster=tuple(request.cluster) if any(request.cluster) else None,
        cooperative=bool(request.cooperative),
        buffers=current_buffers(standin),
    )


def run_kernel(
    kernel: Kernel,
    grid,
    block,
    args: list,
    dynamic_shared: int,
    *,
    cluster=None,
    cooperative: bool = False,
    buffers=(),
) -> None:
    """Runs a kernel with the current options and adds it to the records."""
    now = options()
    report = kernel.launch(
        grid,
        block,
        args,
        dynamic_shared,
        seed=now.seed,
        resident=now.resident,
        max_steps=now.max_steps,
        buffers=buffers,
        cluster=cluster,
        cooperative=cooperative,
        on_gpu=False,
    )
    shape = (grid, block, cluster or (1, 1, 1), dynamic_shared, cooperative)
    name = short_name(kernel.name)
    done = LaunchRecord(name, kernel.name, *shape, report)
    for record in records():
        record.launches.append(done)


@functools.cache
def short_name(symbol: str) -> str:
    """A mangled function's own name: without its namespaces, templates and arguments."""
    if not symbol.startswith("_Z"):
        return symbol
    names = []
    rest = symbol[2:].removeprefix("N").removeprefix("L")
    while found := re.match(r"L?(\d+)", rest):
        end = found.end() + int(found[1])
        names.append(rest[found.end() : end])
        rest = rest[end:]
    return names[-1]
