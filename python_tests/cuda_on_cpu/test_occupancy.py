"""Registers by ptxas, and occupancy by hand and by the toolkit's own header."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import BadLaunch, Unsupported
from cuda_on_cpu.limits import LIMITS
from cuda_on_cpu.occupancy import occupancy, resources
from cuda_on_cpu.ptx_snippets import module, zeros
from cuda_on_cpu.toolkit import find_tool

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="there is no ptxas")


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks"),
    [
        ("sm_80", 1024, 32, 0, 2),  # 2048 threads
        ("sm_80", 1024, 64, 0, 1),
        ("sm_80", 1024, 65, 0, 0),  # 72 registers after rounding
        ("sm_80", 32, 16, 0, 32),  # 32 blocks
        ("sm_80", 256, 128, 0, 2),
        ("sm_80", 128, 168, 0, 3),  # 5376 registers a warp: three in each quarter
        ("sm_80", 128, 32, 24 * 1024, 6),  # 25 KiB with what is reserved
        ("sm_80", 128, 32, 163 * 1024, 1),
        ("sm_80", 128, 32, 163 * 1024 + 1, 0),
        ("sm_75", 256, 32, 16 * 1024, 4),
        ("sm_86", 256, 32, 0, 6),  # 1536 threads
        ("sm_90", 384, 168, 200 * 1024, 1),
        ("sm_90", 128, 32, 113 * 1024, 2),
        ("sm_90a", 128, 32, 114 * 1024, 1),
        ("sm_100", 64, 32, 0, 32),
        ("sm_80", 128, 256, 0, 0),
    ],
)
def test_by_hand(arch, threads, registers, shared, blocks):
    assert occupancy(arch, threads, registers, shared) == blocks


def test_an_architecture_that_is_not_known():
    with pytest.raises(Unsupported, match="sm_70"):
        occupancy("sm_70", 32, 32, 0)


HEADER = """
#include <cuda_occupancy.h>
extern "C" int blocks(int major, int minor, int threads, int registers, int shared, int per_block,
                      int per_multiprocessor, int most_threads) {
  cudaOccDeviceProp device;
  device.computeMajor = major, device.computeMinor = minor;
  device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = most_threads;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32, device.numSms = 100;
  device.sharedMemPerBlock = 48 * 1024, device.sharedMemPerBlockOptin = per_block;
  device.sharedMemPerMultiprocessor = per_multiprocessor;
  device.reservedSharedMemPerBlock = major >= 8 ? 1024 : 0;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers;
  kernel.maxDynamicSharedSizeBytes = per_block, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  const cudaOccDeviceState state;
  cudaOccResult result;
  const cudaOccError error =
      cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
  return error ? -1 : result.activeBlocksPerMultiprocessor;
}
"""


@pytest.fixture(scope="module")
def by_header(tmp_path_factory):
    """NVIDIA's occupancy calculator, which is a C++ header."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    said = subprocess.run([nvcc, "-dryrun", "x.cu"], capture_output=True, text=True, check=False)
    top = next(line for line in said.stderr.splitlines() if "TOP=" in line).split("TOP=")[1]
    include = Path(top.strip()) / "include"
    folder = tmp_path_factory.mktemp("occupancy")
    source, library = folder / "occupancy.cpp", folder / "occupancy.so"
    source.write_text(HEADER)
    command = ["g++", "-w", "-shared", "-fPIC", "-isystem", include, source, "-o", library]
    subprocess.run([str(word) for word in command], check=True)
    return ctypes.CDLL(str(library)).blocks


@pytest.mark.parametrize("arch", LIMITS)
def test_by_the_toolkit(by_header, arch):
    limits, number = LIMITS[arch], int(arch[3:])
    sizes = (limits.shared, limits.shared_per_multiprocessor, limits.threads_per_multiprocessor)
    seen = set()
    for threads, registers, shared in itertools.product(
        (32, 96, 128, 250, 384, 1024),
        (8, 33, 64, 72, 128, 168, 200, 255),
        (0, 1, 1000, 9000, 20_000, 48 * 1024, limits.shared - 100, limits.shared),
    ):
        got = occupancy(arch, threads, registers, shared)
        given = (number // 10, number % 10, threads, registers, shared)
        assert got == by_header(*given, *sizes), (threads, registers, shared)
        seen.add(got)
    assert len(seen) > 6


def many_registers(count, directive=""):
    """A kernel that holds `count` values at once."""
    declare = f".reg .f32 v<{count}>;\n"
    load = "".join(f"ld.volatile.global.f32 v{i}, [g0+{4 * i}];\n" for i in range(count))
    use = "".join(f"st.volatile.global.f32 [g0+{4 * i}], v{i};\n" for i in range(count))
    ptx = module(declare + load + "bar.sync 0;\n" + use)
    return ptx.replace("\n{\n", f"\n{directive}\n{{\n", 1)


@needs_ptxas
def test_what_ptxas_says():
    few, many = (resources(many_registers(n), "k", "sm_80") for n in (8, 150))
    assert few.registers < 32
    assert 150 <= many.registers <= 168
    assert few[1:] == many[1:] == (0, 0, 0, 0)
    spilt = resources(many_registers(150, ".maxnreg 64"), "k", "sm_80")
    assert spilt.registers <= 64
    assert min(spilt.spill_stores, spilt.spill_loads, spilt.stack) >= 4 * (150 - 64)
    body = "mov.u32 t0, buffer; st.shared.u32 [t0], tid; bar.sync 0; ld.shared.u32 t1, [t0];"
    body += "st.global.u32 [g0], t1;"
    shared = module(body, outside=".shared .align 4 .b8 buffer[512];")
    assert resources(shared, "k", "sm_90").static_shared == 512


@needs_ptxas
def test_a_launch_with_too_many_registers():
    kernel, x = emulate(many_registers(150)), zeros(150)
    kernel[1, 256](x)
    with pytest.raises(BadLaunch, match=r"1024 threads of 1\d\d registers; sm_80 has 65536"):
        kernel[1, 1024](x)
