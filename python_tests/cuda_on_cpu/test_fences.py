"""Blocks that tell each other through memory: right with its fences, reported without them."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu import nvcc_kernels as nk
from cuda_on_cpu.errors import GlobalRace, SharedRace
from cuda_on_cpu.nvcc_kernels import compiled
from cuda_on_cpu.ptx_snippets import launch, zeros

SEEDS = range(4)
LAST_BLOCK = (
    "last_block_adds_blocks",
    "last_block_adds_threads",
    "last_block_one_fences",
    "last_block_acq_rel",
)


def edited(comment, new="", old="__threadfence();", file="fences"):
    """PTX of the file with the call before a comment replaced, everywhere."""
    source = (nk.FOLDER / f"{file}.cu").read_text()
    assert f"{old}  // {comment}" in source
    return nk.compile_cuda(source.replace(f"{old}  // {comment}", new))


def last_block(name, ptx, seed, blocks=5):
    per_block = 1 if name == "last_block_adds_blocks" else 64
    partial, arrived, total = zeros(blocks * per_block), zeros(1), zeros(1)
    report = nk.Launch(seed)(ptx, name, blocks, 64, 0, partial, arrived, total)
    expected = sum(range(blocks + 1)) if per_block == 1 else blocks * sum(range(64))
    assert total.item() == expected
    assert report.warnings == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LAST_BLOCK)
def test_the_last_block_may_read(name, seed):
    last_block(name, compiled("fences"), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LAST_BLOCK[:3])
@pytest.mark.parametrize("place", ["BEFORE", "AFTER"])
@pytest.mark.parametrize("instead", ["", "__threadfence_block();"])
def test_a_fence_is_missing(name, place, instead, seed):
    """None at all, or one for the block only: the last block's reads race with the writes."""
    ptx = edited(place, instead)
    with pytest.raises(GlobalRace, match="release and acquire"):
        last_block(name, ptx, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LAST_BLOCK[2:])
def test_one_thread_speaks_for_those_it_waited_for(name, seed):
    with pytest.raises(GlobalRace):
        last_block(name, edited("BLOCK", old="__syncthreads();"), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("order", ["relaxed.gpu", "acquire.gpu", "release.gpu", "acq_rel.cta"])
def test_an_atomic_that_orders_too_little(order, seed):
    ptx = compiled("fences").replace("atom.add.acq_rel.gpu", f"atom.add.{order}")
    with pytest.raises(GlobalRace):
        last_block("last_block_acq_rel", ptx, seed)


def neighbours(ptx, seed, blocks=6):
    values, barrier, out = zeros(blocks * 64), zeros(1), zeros(blocks * 64)
    nk.Launch(seed)(ptx, "neighbours", blocks, 64, 0, values, barrier, out)
    assert out.tolist() == [(i + 64) % (blocks * 64) + 2 for i in range(blocks * 64)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_grid_that_waits_for_all(seed):
    neighbours(compiled("grid_sync"), seed)


@pytest.mark.parametrize("place", ["WRITTEN", "READ"])
def test_a_grid_that_does_not_wait(place):
    """Not under every interleaving: the next barrier may order what this one should have."""
    ptx = edited(place, old="wait_for_grid(barrier);", file="grid_sync")
    races = 0
    for seed in SEEDS:
        try:
            neighbours(ptx, seed)
        except GlobalRace:
            races += 1
        except AssertionError:
            continue
    assert races


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 64, 2500])
def test_decoupled_look_back(count, seed):
    tiles = -(-count // 64)
    values, sums = nk.integers(100, count), nk.unwritten(count, dtype=torch.int32)
    memory = torch.zeros(tiles * 8 + 1024, dtype=torch.uint8)
    go, ptx = nk.Launch(seed), compiled("look_back")
    go(ptx, "start_tiles", -(-tiles // 64), 64, 0, memory, tiles)
    report = go(ptx, "look_back", tiles, 64, 0, nk.Const(values), sums, count, memory, tiles)
    assert torch.equal(sums, values.cumsum(0, dtype=torch.int32))
    assert report.warnings == []


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_of_a_warp_that_wait_for_each_other(seed):
    lock, count = zeros(1), zeros(1)
    nk.Launch(seed)(compiled("fences"), "locked_count", 2, 64, 0, lock, count)
    assert count.item() == 2 * 64
    out = zeros(1)
    nk.Launch(seed)(compiled("fences"), "locked_count_in_shared", 1, 64, 0, out)
    assert out.item() == 64


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("place", ["LOCK", "UNLOCK"])
def test_a_lock_without_a_fence(place, seed):
    with pytest.raises(GlobalRace):
        nk.Launch(seed)(edited(place), "locked_count", 2, 64, 0, zeros(1), zeros(1))
    ptx = edited(place, old="__threadfence_block();")
    with pytest.raises(SharedRace):
        nk.Launch(seed)(ptx, "locked_count_in_shared", 1, 64, 0, zeros(1))


PAIR = """
    setp.lt.u32 p0, tid, 32; and.b32 t5, tid, 31; setp.eq.u32 p1, t5, 3;
    @!p0 bra SECOND; {first} {between} bra DONE;
    SECOND: {between} {second}
    DONE:"""
WRITES = {
    "st": "@p1 st.global.u32 [g0], tid;",
    "st.b8": "@p1 cvt.u16.u32 h0, tid; @p1 st.global.b8 [g0+1], h0;",
    "st.v4": "@p1 st.global.v4.u32 [g0], {tid, tid, tid, tid};",
    "atom": "@p1 atom.global.add.u32 t1, [g0], 1;",
    "volatile": "@p1 st.volatile.global.u32 [g0], tid;",
}
READS = {
    "ld": "@p1 ld.global.u32 t2, [g0];",
    "ld.v2": "@p1 ld.global.v2.u32 {t2, t3}, [g0];",
    "relaxed": "@p1 ld.relaxed.gpu.global.u32 t2, [g0];",
}
STRONG = {"atom", "volatile", "relaxed"}
CASES = [
    *((a, b) for a in WRITES for b in READS),
    *((a, b) for a in READS for b in WRITES),
    *((a, b) for a in WRITES for b in WRITES),
]


@pytest.mark.parametrize(("first", "second"), CASES, ids=["-".join(case) for case in CASES])
def test_warps_of_a_block(first, second):
    """Two warps touch the same word: they race unless a barrier is between, or both are strong."""
    both = WRITES | READS
    for seed in (0, 3):
        accesses = {"first": both[first], "second": both[second]}
        ordered = PAIR.format(**accesses, between="bar.sync 0;")
        launch(ordered, zeros(4), block=64, seed=seed)
        racy = PAIR.format(**accesses, between="")
        if {first, second} <= STRONG:
            launch(racy, zeros(4), block=64, seed=seed)
        else:
            with pytest.raises(GlobalRace, match=r"by warp \d, with no barrier"):
                launch(racy, zeros(4), block=64, seed=seed)


def test_neighbouring_bytes_and_reads_do_not_race():
    write = "@p1 cvt.u16.u32 h0, tid; @p1 st.global.b8 [g0+{}], h0;"
    pair = PAIR.format(first=write.format(1), second=write.format(2), between="")
    launch(pair, zeros(1), block=64)
    pair = PAIR.format(first=READS["ld"], second=READS["ld.v2"], between="")
    launch(pair, zeros(4), block=64)


def test_where_a_race_is():
    body = PAIR.format(first=WRITES["st"], second=READS["ld"], between="")
    with pytest.raises(GlobalRace) as caught:
        launch(body, zeros(4), block=64)
    assert "offset 0 after a write by warp 0" in str(caught.value)
    assert "thread (35, 0, 0)" in str(caught.value)
    assert "ld.global.u32 t2" in str(caught.value)
