"""Triton's own ``kernel[grid](...)``, emulated: its specialisation, its PTX, CPU tensors."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import errors
from cuda_on_cpu.runtime import recording

pytest.importorskip("triton")

import triton
import triton.language as tl

from cuda_on_cpu import triton_kernels as tk
from cuda_on_cpu.runtime.triton_launch import triton_emulation

SEEDS = range(4)


@triton.jit
def shift(x: tl.const, out, count, by, block: tl.constexpr = 64):
    at = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out + at, tl.load(x + at, mask=at < count) + by, mask=at < count)


@triton.jit
def without_a_mask(x, out, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def write_an_input(x: tl.const, address, out):
    tl.store(out, 1.0)
    tl.store(address.to(tl.pointer_type(tl.float32)), tl.load(x) + 1.0)


@triton.jit
def dot_tuple(pointers, scales, block: tl.constexpr):
    at = tl.arange(0, block)
    total = tl.load(pointers[0] + at) * scales[0] + tl.load(pointers[1] + at) * scales[1]
    tl.store(pointers[2] + at, total)


@triton.jit
def scale(x, factor, out, block: tl.constexpr):
    at = tl.arange(0, block)
    tl.store(out + at, tl.load(x + at) * factor)


def random(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1000, 1024])
def test_a_launch(count, seed):
    x, y, out = random(count), random(count), torch.full((count,), float("nan"))
    with triton_emulation(seed=seed), recording() as record:
        tk.add[lambda meta: (triton.cdiv(count, meta["block"]),)](x, y, out, count, block=256)
    assert torch.equal(out, x + y)
    (launch,) = record.launches
    assert (launch.name, launch.grid, launch.block) == ("add", (4, 1, 1), (128, 1, 1))
    assert launch.counts["global_load_bytes"] == 2 * 4 * count
    assert launch.warnings == []


def test_multiples_of_16_are_specialised():
    """Only where addresses and the bound are multiples may a load be wider than an element."""
    requests = {}
    base = random(2000)
    for name, x, count in [
        ("aligned", base, 1024),
        ("odd", base[1:], 1024),
        ("ragged", base, 1023),
    ]:
        out = torch.zeros(1024)
        with triton_emulation(), recording() as record:
            tk.add[(4,)](x, x, out, count, block=256, num_warps=1)
        assert torch.equal(out[:count], 2 * x[:count])
        requests[name] = record.counts["global_load_requests"]
    assert requests["odd"] == requests["ragged"] == 2 * 1024 // 32
    # x is known to be aligned to 16 bytes, a load of four floats, and twice in the aligned call.
    assert requests["aligned"] == 2 * 1024 // 32 // 4


def test_defaults_folded_ones_and_keywords():
    x, out = torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    with triton_emulation(), recording() as record:
        for by in (1, 2, 7):
            shift[(1,)](x, out, 64, by=by)
            assert torch.equal(out, x + by)
    assert record.names == ["shift"] * 3


def test_tuples_and_scalars_of_other_types():
    x, y, out = random(32), random(32), torch.zeros(32)
    with triton_emulation():
        dot_tuple[(1,)]((x, y, out), (2.0, -0.5), block=32)
        torch.testing.assert_close(out, 2 * x - y / 2)
        half, result = random(32, dtype=torch.bfloat16), torch.zeros(32, dtype=torch.bfloat16)
        scale[(1,)](half, 3.0, result, block=32)
        assert torch.equal(result, half * 3)
        whole, product = torch.arange(32), torch.zeros(32, dtype=torch.int64)
        scale[(1,)](whole, -(2**40), product, block=32)
        assert torch.equal(product, whole * -(2**40))


@pytest.mark.parametrize("seed", SEEDS)
def test_softmax_and_matmul(seed):
    x, out = random(5, 250), torch.empty(5, 250)
    a, b = random(80, 96, dtype=torch.float16), random(96, 112, dtype=torch.float16)
    c = torch.empty(80, 112, dtype=torch.float16)
    tile = {"block_m": 32, "block_n": 64, "block_k": 32, "group": 2}
    with triton_emulation(seed=seed), recording() as record:
        tk.softmax[(5,)](x, out, 250, block=256)
        tk.matmul[(3 * 2,)](a, b, c, 80, 112, 96, **tile)
    torch.testing.assert_close(out, x.softmax(1))
    torch.testing.assert_close(c, (a.double() @ b.double()).half(), rtol=1e-2, atol=1e-2)
    assert record.names == ["softmax", "matmul"]
    assert record.launches[1].counts["tensor_flops"] == 6 * 2 * 32 * 64 * 96


def test_the_target_is_the_architecture_asked_for():
    x, out = random(64), torch.zeros(64)
    for arch, target in (("sm_80", "sm_80"), ("sm_90", "sm_90a")):
        with triton_emulation(arch=arch):
            compiled = tk.add[(1,)](x, x, out, 64, block=64)
            again = tk.add[(1,)](x, x, out, 64, block=64)
        assert f".target {target}\n" in compiled.asm["ptx"].decode()
        assert again is compiled
        assert torch.equal(out, x + x)


@pytest.mark.parametrize("seed", SEEDS)
def test_programs_of_two_blocks(seed):
    """A cluster each, whose blocks reduce together."""
    x, out = random(5, 250), torch.empty(5, 250)
    with triton_emulation(seed=seed, arch="sm_90"), recording() as record:
        tk.softmax[(5,)](x, out, 250, block=256, num_ctas=2)
    torch.testing.assert_close(out, x.softmax(1))
    assert (record.launches[0].grid, record.launches[0].cluster) == ((10, 1, 1), (2, 1, 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_out_of_bounds(seed):
    x = random(1000)
    place = r"\[block \(3, 0, 0\), thread \(\d+, 0, 0\), PTX line \d+, test_triton_launch.py:\d+"
    with (
        triton_emulation(seed=seed),
        pytest.raises(errors.OutOfBounds, match=rf"buffer of 4000 bytes {place}"),
    ):
        without_a_mask[(4,)](x, x, block=256)


def test_a_write_to_a_const_pointer():
    x, out = torch.zeros(1), torch.zeros(1)
    with triton_emulation(), pytest.raises(errors.ReadOnly):
        write_an_input[(1,)](x, x.data_ptr(), out)
    assert out.item() == 1


def test_a_tensor_of_the_wrong_size():
    a = random(32, 32, dtype=torch.float16)
    tile = {"block_m": 32, "block_n": 32, "block_k": 32, "group": 1}
    with triton_emulation(), pytest.raises(errors.OutOfBounds):
        tk.matmul[(1,)](a, a[:31].clone(), torch.empty_like(a), 32, 32, 32, **tile)


def test_too_much_shared_memory():
    """Three stages in flight, of 256 x 64 and 64 x 256 halves, are 192 KiB; a block has 163."""
    a = random(256, 256, dtype=torch.float16)
    tile = {"block_m": 256, "block_n": 256, "block_k": 64, "group": 1}
    with triton_emulation(), pytest.raises(triton.runtime.OutOfResources, match="shared memory"):
        tk.matmul[(1,)](a, a, a.clone(), 256, 256, 256, **tile, num_warps=8, num_stages=4)


def test_an_empty_grid_launches_nothing():
    with triton_emulation(), recording() as record:
        without_a_mask[(0,)](random(16), torch.zeros(16), block=16)
    assert record.launches == []


def test_the_autotuner_is_refused():
    configs = [triton.Config({"block": block}) for block in (16, 32)]
    tuned = triton.autotune(configs, key=[])(without_a_mask)
    x, out = random(32), torch.zeros(32)
    with triton_emulation(), pytest.raises(errors.Unsupported, match="nothing here is a time"):
        tuned[(1,)](x, out)


def test_everything_is_as_before_afterwards():
    before = triton.runtime.driver._active
    with triton_emulation(arch="sm_90"):
        assert triton.runtime.driver.active.get_current_target().arch == 90
    assert triton.runtime.driver._active is before
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="0 active drivers"):
            without_a_mask[(1,)](random(16), torch.zeros(16), block=16)
