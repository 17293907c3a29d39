"""What a wrong launcher does on a GPU, silently or not, is an exception of the call."""

from __future__ import annotations

import contextlib
import ctypes
import shutil

import pytest
import torch

from cuda_on_cpu import Const, errors, launchers, runtime
from cuda_on_cpu.launchers import call
from cuda_on_cpu.runtime.images import choose, runs_on

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")

SEEDS = range(4)
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = 1, 2, 3, 4


@pytest.mark.parametrize("seed", SEEDS)
def test_one_block_too_many(seed):
    x = torch.ones(1000)[:896]
    with runtime.emulation(seed=seed):
        assert call("launch_scale", x, 2.0, 7, 128) == 0
    assert x.eq(2).all()
    place = r"block \(7, 0, 0\), thread \(\d+, 0, 0\), PTX line \d+, launchers.cu:13"
    with (
        runtime.emulation(seed=seed),
        pytest.raises(errors.OutOfBounds, match=rf"buffer of 4000 bytes \[{place}"),
    ):
        call("launch_scale", x, 2.0, 8, 128)


def test_one_element_too_many():
    x = torch.ones(1023)
    with pytest.raises(errors.OutOfBounds, match="at offset 4092 of a buffer of 4092 bytes"):
        call("launch_scale", x, 2.0, 1, 1024)


def test_a_fault_is_raised_though_the_launcher_ignores_it():
    with pytest.raises(errors.OutOfBounds):
        call("ignore_every_error", torch.ones(100), 128)
    assert call("last_error") == 0  # the next call begins anew


def test_a_fault_is_an_error_code_for_the_launcher():
    """It sticks, as on a GPU: the tensor of the second launch stays as it is."""
    x, y, codes = torch.ones(4), torch.ones(100), []
    with contextlib.suppress(errors.OutOfBounds), runtime.device_memory(x, y):
        codes.append(launchers.raw("launch_scale", x, 2.0, 1, 128))
        codes.append(launchers.raw("launch_scale", y, 2.0, 1, 100))
    assert codes == [700, 700]
    assert y.eq(1).all()
    assert launchers.library().name_of_error(700) == b"cudaErrorIllegalAddress"
    assert launchers.raw("launch_reverse", None, None, 0, 0) == 0  # the next call begins anew


def test_a_write_to_an_input():
    with pytest.raises(errors.ReadOnly):
        call("launch_scale", Const(torch.ones(128)), 2.0, 1, 128)


def test_a_tensor_that_is_not_of_the_call():
    x = torch.ones(128)
    with pytest.raises(errors.OutOfBounds, match="in no buffer"), runtime.device_memory():
        launchers.raw("launch_scale", x, 2.0, 1, 128)


@pytest.mark.parametrize(("grid", "block"), [(0, 32), (1, 1025), (1, 0)])
def test_wrong_launch_configuration(grid, block):
    with pytest.raises(errors.BadLaunch):
        call("launch_scale", torch.ones(2048), 2.0, grid, block)


@pytest.mark.parametrize("asked", [0, 79_999])
def test_more_shared_memory_than_asked_for(asked):
    x, out = torch.zeros(2, 20_000, dtype=torch.int32)
    with pytest.raises(errors.BadLaunch, match="80000 bytes of dynamic shared memory"):
        call("launch_reverse", x, out, 20_000, asked)


def test_more_shared_memory_than_the_default_without_asking():
    x, out = torch.zeros(2, 20_000, dtype=torch.int32)
    assert call("launch_reverse_without_asking", x, out, 48 * 256) == 0
    with pytest.raises(errors.BadLaunch, match="cudaFuncSetAttribute"):
        call("launch_reverse_without_asking", x, out, 48 * 256 + 1)


def test_asking_for_more_shared_memory_than_there_is():
    x, out = torch.zeros(2, 8, dtype=torch.int32)
    with pytest.raises(errors.BadLaunch, match="a block may have 166912"):
        call("launch_reverse", x, out, 8, 163 * 1024 + 1)
    with runtime.emulation(arch="sm_90"):
        assert call("launch_reverse", x, out, 8, 163 * 1024 + 1) == 0


def test_a_cooperative_launch_that_does_not_fit():
    """Of the 33rd block of 32 threads there is none on one multiprocessor."""
    arrived, out = torch.zeros(2, dtype=torch.int32), torch.zeros(33, dtype=torch.int32)
    with runtime.emulation(multiprocessors=1):
        assert call("launch_agree", arrived, out, 32) == 0
        with pytest.raises(errors.BadLaunch, match="33 blocks, 32 fit"):
            call("launch_agree", arrived, out, 33)


def test_arguments_by_hand():
    at = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(errors.OutOfBounds, match="0x100000040"):  # eight bytes were read
        call("launch_with_a_short_argument", at)
    with pytest.raises(errors.BadLaunch, match="argument 1 of"):
        call("launch_without_an_argument", at)


def test_memory_of_the_launcher_is_exact():
    assert call("overrun_own_memory", 0) == 0
    with pytest.raises(errors.OutOfBounds, match="a buffer of 255 bytes"):
        call("overrun_own_memory", 1)


def test_freed_memory_is_gone():
    with pytest.raises(errors.OutOfBounds, match="read of 4 bytes at"):
        call("use_after_free", Const(torch.ones(64)), 64)
    with pytest.raises(errors.Invalid, match="not allocated"):
        call("free_twice")


def test_a_destroyed_stream():
    with pytest.raises(errors.BadLaunch, match="stream that does not exist"):
        call("use_destroyed_stream", torch.ones(4), torch.ones(4), 4)


def test_copies_are_checked():
    x, host = torch.ones(4), torch.zeros(100)
    with runtime.device_memory(Const(x)):
        assert launchers.raw("copy_bytes", host, x, ctypes.c_size_t(16), DEVICE_TO_HOST) == 0
    assert host[:5].tolist() == [1, 1, 1, 1, 0]
    wrong = [
        (errors.OutOfBounds, host, x, 17, DEVICE_TO_HOST),
        (errors.OutOfBounds, x, host, 4, DEVICE_TO_HOST),  # the host's memory is not the device's
        (errors.ReadOnly, x, host, 4, HOST_TO_DEVICE),
    ]
    for kind, to, source, size, direction in wrong:
        with pytest.raises(kind), runtime.device_memory(Const(x)):
            launchers.raw("copy_bytes", to, source, ctypes.c_size_t(size), direction)
    with pytest.raises(errors.OutOfBounds, match="16 bytes at offset 0 of a variable of 12"):
        call("write_beyond_a_symbol", torch.ones(4))


@pytest.mark.parametrize(
    ("to_device", "from_device", "kind", "waits"),
    [
        *[(True, False, HOST_TO_DEVICE, True), (False, True, DEVICE_TO_HOST, True)],
        *[(True, True, DEVICE_TO_DEVICE, False), (True, True, DEFAULT, False)],
        *[(False, True, DEFAULT, True), (True, False, DEFAULT, True)],
    ],
)
def test_which_copies_the_host_waits_for(to_device, from_device, kind, waits):
    to, source = torch.zeros(4), torch.ones(4)
    device = [x for x, there in ((to, to_device), (source, from_device)) if there]
    with runtime.recording() as record, runtime.device_memory(*device):
        launchers.raw("copy_bytes", to, source, ctypes.c_size_t(16), kind)
    assert to.eq(1).all()
    assert record.synchronisations == ["cudaMemcpy"] * waits


@pytest.mark.parametrize(
    ("launcher", "function"),
    [
        ("time_a_kernel", "cudaEventElapsedTime"),
        ("ask_for_a_graph", "cudaGraphCreate"),
        ("ask_the_driver_for_more", "cuMemAlloc"),
    ],
)
def test_what_is_not_there_is_an_error_with_its_name(launcher, function):
    with runtime.recording() as record, pytest.raises(errors.Unsupported, match=function):
        call(launcher)
    assert record.unsupported == [function]


def test_clusters():
    with pytest.raises(errors.BadLaunch, match="clusters of 2 blocks on sm_80"):
        call("launch_clusters", torch.ones(128), 2)
    with runtime.recording(arch="sm_90") as record:
        assert call("launch_clusters", torch.ones(128), 2) == 0
        with pytest.raises(errors.BadLaunch, match="not a multiple of clusters"):
            call("launch_clusters", torch.ones(128), 3)
    assert [launch.cluster for launch in record.launches] == [(2, 1, 1)]


def test_tensor_maps():
    x = torch.zeros(16, 16)
    assert call("make_tensor_map", x, 16, 16) == 0
    with pytest.raises(errors.Invalid, match="multiple of 16"):
        call("make_tensor_map", x, 16, 15)  # rows of 60 bytes


def test_compressed_ptx_is_refused():
    with pytest.raises(errors.Unsupported, match="--no-compress"):
        launchers.compressed()


@pytest.mark.parametrize(
    ("target", "arch", "runs"),
    [
        *[("sm_80", "sm_80", True), ("sm_80", "sm_90", True), ("sm_90", "sm_80", False)],
        *[("sm_90a", "sm_90", True), ("sm_90a", "sm_100", False), ("sm_100f", "sm_100", True)],
        *[("sm_100f", "sm_110", False), ("sm_100f", "sm_103", True)],
    ],
)
def test_which_ptx_a_device_runs(target, arch, runs):
    assert runs_on(target, arch) == runs


def test_the_nearest_ptx_is_chosen():
    texts = [f".version 9.0\n.target {name}\n" for name in ("sm_90", "sm_75", "sm_90a", "sm_80")]
    assert [choose(texts, arch) for arch in ("sm_80", "sm_90", "sm_100")] == [
        *(texts[3], texts[2], texts[0])
    ]
    with pytest.raises(errors.BadLaunch, match="sm_90a"):
        choose(texts[2:3], "sm_80")
