"""Atomic operations under contention, on shared and global memory."""

from __future__ import annotations

from functools import reduce

import pytest
import torch

from cuda_on_cpu.ptx_snippets import at, launch, random_bits, run, signed, unsigned, zeros

THREADS, CELLS = 128, 4
SHARED = ".shared .align 8 .b8 cells[32];"


def contended(operation, kind, start, values, space, seed=0):
    """Thread i applies ``operation`` with its value to cell i % 4; old values and final cells."""
    size = int(kind[1:]) // 8
    dtype = values.dtype
    atom = f"atom.{space}.{operation}.{kind} d, [x3], v;"
    register = f"{'f' if kind[0] == 'f' else 'b'}{8 * size}"
    body = f".reg .{register} d, v;\n" + at("g0", size) + at("g1", size, "x1")
    body += f"ld.global.{kind} v, [x0]; and.b32 t0, tid, 3; mad.wide.u32 x2, t0, {size}, g2;\n"
    if space == "global":
        body += f"mov.b64 x3, x2; {atom}"
    else:
        body += f"""mov.u64 x3, cells; mad.wide.u32 x3, t0, {size}, x3; setp.lt.u32 p0, tid, 4;
            @p0 ld.global.{kind} d, [x2]; @p0 st.shared.{kind} [x3], d; bar.sync 0;
            {atom} bar.sync 0;
            .reg .{register} w; @p0 ld.shared.{kind} w, [x3]; @p0 st.global.{kind} [x2], w;"""
    body += f"st.global.{kind} [x1], d;"
    old, cells = torch.zeros_like(values), torch.tensor(start, dtype=dtype)
    options = {"block": THREADS, "outside": SHARED, "seed": seed}
    on_gpu = {1: False, 2: operation != "exch"}  # the order is free, and the last one exchanged
    launch(body, values, old, cells, **options, on_gpu=on_gpu)
    return old, cells


def column(values, cell, kind):
    bits = int(kind[1:])
    cast = {"s": signed, "u": unsigned, "b": unsigned}[kind[0]]
    return [cast(v, bits) for v in values.tolist()[cell::CELLS]]


OPERATIONS = {
    "add": lambda a, b: a + b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("add", k) for k in ("u32", "s32", "u64")]
    + [(n, k) for n in ("min", "max") for k in ("u32", "s32", "u64", "s64")]
    + [(n, k) for n in ("and", "or", "xor") for k in ("b32", "b64")],
)
def test_integers(name, kind, space):
    bits = int(kind[1:])
    dtype = torch.int32 if bits == 32 else torch.int64
    values = torch.tensor(
        [signed(v, bits) for v in random_bits(bits, THREADS, seed=70, extremes=False)], dtype=dtype
    )
    start = [5, -7, 1 << 20, 0]
    old, cells = contended(name, kind, start, values, space)
    for cell in range(CELLS):
        mine, before = column(values, cell, kind), column(old, cell, kind)
        first = column(torch.tensor(start), cell, kind)[0]
        final = column(cells, cell, kind)[0]
        total = reduce(OPERATIONS[name], mine, first)
        assert unsigned(final, bits) == unsigned(total, bits)
        # each operation's result is what another one saw, but for the first and the last
        after = [unsigned(OPERATIONS[name](x, y), bits) for x, y in zip(before, mine, strict=True)]
        seen = sorted([*(unsigned(v, bits) for v in before), unsigned(final, bits)])
        assert seen == sorted([unsigned(first, bits), *after])


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_float_add(kind, space):
    """Quarters of small integers, whose sums are exact in every order."""
    g = torch.Generator().manual_seed(71)
    dtype = {"f32": torch.float32, "f64": torch.float64}[kind]
    values = torch.randint(-40, 40, (THREADS,), generator=g).to(dtype) / 4
    old, cells = contended("add", kind, [0.5] * 4, values, space)
    assert torch.equal(cells, values.view(-1, CELLS).sum(0) + 0.5)
    after = (old + values).view(-1, CELLS)
    for cell in range(CELLS):
        seen = sorted([*old[cell::CELLS].tolist(), cells[cell].item()])
        assert seen == sorted([0.5, *after[:, cell].tolist()])


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_exchange_hands_every_value_on_once(kind, space):
    dtype = torch.int32 if kind == "b32" else torch.int64
    values = torch.arange(100, 100 + THREADS, dtype=dtype)
    old, cells = contended("exch", kind, [0, 1, 2, 3], values, space)
    for cell in range(CELLS):
        seen = sorted([*old[cell::CELLS].tolist(), cells[cell].item()])
        assert seen == sorted([cell, *values[cell::CELLS].tolist()])


@pytest.mark.parametrize("space", ["global", "shared"])
def test_inc_wraps_and_dec_reloads(space):
    limit = torch.full((THREADS,), 6, dtype=torch.int32)
    old, cells = contended("inc", "u32", [0, 6, 7, 3], limit, space)
    count = THREADS // CELLS
    for cell, first in enumerate([0, 6, 7, 3]):
        seen = [first]
        for _ in range(count):
            seen.append(0 if seen[-1] >= 6 else seen[-1] + 1)
        assert sorted(old[cell::CELLS].tolist()) == sorted(seen[:-1])
        assert cells[cell] == seen[-1]
    old, cells = contended("dec", "u32", [0, 6, 7, 3], limit, space)
    for cell, first in enumerate([0, 6, 7, 3]):
        seen = [first]
        for _ in range(count):
            seen.append(6 if seen[-1] == 0 or seen[-1] > 6 else seen[-1] - 1)
        assert sorted(old[cell::CELLS].tolist()) == sorted(seen[:-1])
        assert cells[cell] == seen[-1]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_cas_writes_only_on_a_match(bits):
    dtype = {16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
    data, old = torch.arange(32, dtype=dtype), torch.zeros(32, dtype=dtype)
    size = bits // 8
    body = f".reg .b{bits} c, n, d;\n" + at("g0", size) + at("g1", size, "x1")
    body += f"and.b32 t0, tid, 30; cvt.u{bits}.u32 c, t0; mov.b{bits} n, 99;"
    body += f"atom.global.cas.b{bits} d, [x0], c, n; st.global.b{bits} [x1], d;"
    launch(body, data, old)
    assert old.tolist() == list(range(32))
    assert data.tolist() == [99 if i % 2 == 0 else i for i in range(32)]


@pytest.mark.parametrize("seed", range(4))
def test_cas_loop_and_spin_lock(seed):
    """A CAS loop adds; a lock taken by one lane of each warp guards plain memory."""
    loop = """
        mov.u64 x0, g0; ld.volatile.global.u32 t0, [x0];
        AGAIN: mov.b32 t1, t0; add.u32 t2, t1, tid;
        atom.global.cas.b32 t0, [x0], t1, t2; setp.ne.u32 p0, t0, t1; @p0 bra AGAIN;
        and.b32 t3, tid, 31; setp.ne.u32 p1, t3, 0; @p1 bra END;
        LOCK: atom.acquire.gpu.global.cas.b32 t4, [g0+4], 0, 1; setp.ne.u32 p2, t4, 0; @p2 bra LOCK;
        ld.volatile.global.u32 t5, [g0+8]; add.u32 t5, t5, 1; st.volatile.global.u32 [g0+8], t5;
        membar.gl; atom.release.gpu.global.exch.b32 t6, [g0+4], 0;
        END:
    """
    data = zeros(3)
    launch(loop, data, block=THREADS, grid=3, seed=seed)
    assert data.tolist() == [3 * sum(range(THREADS)), 0, 3 * THREADS // 32]


@pytest.mark.parametrize("seed", range(4))
def test_red_with_scopes_and_the_last_block(seed):
    """Blocks add partial sums; whoever counts last sees all of them."""
    body = """
        red.relaxed.gpu.global.add.u32 [g0], tid; red.global.max.s32 [g0+4], tid;
        red.global.or.b32 [g0+8], 4; fence.acq_rel.gpu; bar.sync 0;
        setp.ne.u32 p0, tid, 0; @p0 bra END;
        mov.u32 t0, %nctaid.x; sub.u32 t0, t0, 1;
        atom.acq_rel.gpu.global.inc.u32 t1, [g0+12], t0; setp.ne.u32 p1, t1, t0; @p1 bra END;
        ld.acquire.gpu.global.u32 t2, [g0]; st.release.gpu.global.u32 [g0+16], t2;
        END:
    """
    data = zeros(5)
    launch(body, data, block=64, grid=5, seed=seed)
    assert data.tolist() == [5 * sum(range(64)), 63, 4, 0, 5 * sum(range(64))]


@pytest.mark.parametrize("kind", ["f16", "f16x2"])
def test_half_add(kind):
    """A pair's halves are added apart."""
    values = torch.arange(64, dtype=torch.float16).view(32, 2) / 4
    if kind == "f16":
        values = values[:, :1].contiguous()
    cell = torch.ones(2, dtype=torch.float16)
    size, width = (2, "b16") if kind == "f16" else (4, "b32")
    body = f".reg .{width} v, d;\n" + at("g0", size)
    body += f"ld.global.{width} v, [x0]; atom.global.add.noftz.{kind} d, [g1], v;"
    launch(body, values, cell)
    want = torch.ones(2)
    want[: values.shape[1]] += values.float().sum(0)
    assert torch.equal(cell.float(), want)


def test_predicated_atomics_count_only_their_lanes():
    a = random_bits(32, 32, seed=72)
    counter = zeros(1)
    body = at("g0", 4) + "ld.global.u32 t0, [x0]; and.b32 t0, t0, 1; setp.eq.u32 p0, t0, 1;"
    launch(body + "@p0 red.global.add.u32 [g1], 1;", torch.tensor(a).to(torch.int32), counter)
    assert counter.tolist() == [sum(v & 1 for v in a)]
    assert run("add.u32 d, a, 0;", "u32", ("u32", a)) == a
