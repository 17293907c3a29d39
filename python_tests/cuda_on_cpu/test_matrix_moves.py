"""ldmatrix, stmatrix and movmatrix: where the PTX ISA puts each element."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu.errors import Misaligned
from cuda_on_cpu.ptx_snippets import at, launch, zeros

LANES = range(32)
TILES = ".shared .align 16 .b8 tiles[2048];"
STRIDE = 48  # bytes between rows: a padded tile


def load_matrices(count, trans, rows):
    """Lanes store 16-bit numbers 0.. in a padded tile; lane i points at its row ``rows[i]``."""
    g = torch.tensor(rows, dtype=torch.int32)
    out = zeros(32 * count)
    registers = ", ".join(f"t{i}" for i in range(count))
    fill = "".join(
        f"mad.lo.u32 t1, tid, 8, {2 * i}; add.u32 t2, t1, 1; shl.b32 t2, t2, 16; or.b32 t2, t2, t1;"
        f"st.shared.u32 [t0+{4 * i}], t2;"
        for i in range(4)
    )
    body = f"mov.u32 t0, tiles; mad.lo.u32 t0, tid, {STRIDE}, t0; {fill} bar.warp.sync 0xffffffff;"
    body += (
        at("g0", 4) + f"ld.global.u32 t1, [x0]; mov.u32 t0, tiles; mad.lo.u32 t6, t1, {STRIDE}, t0;"
    )
    body += f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [t6];"
    body += at("g1", 4 * count)
    body += "".join(f"st.global.u32 [x0+{4 * i}], t{i};" for i in range(count))
    launch(body, g, out, outside=TILES)
    return out.view(torch.int16).view(32, count, 2).tolist()


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans):
    """Addresses of lanes beyond ``8 * count`` are not looked at."""
    order = torch.randperm(32, generator=torch.Generator().manual_seed(106)).tolist()
    rows = order[: 8 * count] + [1 << 20] * (32 - 8 * count)
    got = load_matrices(count, trans, rows)
    for lane in LANES:
        for m in range(count):
            pair = [(lane // 4, lane % 4 * 2 + j) for j in range(2)]
            if trans:
                pair = [(c, r) for r, c in pair]
            assert got[lane][m] == [8 * rows[8 * m + r] + c for r, c in pair], (lane, m)


def test_ldmatrix_rows_must_start_at_16_bytes():
    for offset in (0, 8):
        body = f"""mov.u32 t0, tiles; mad.lo.u32 t1, tid, 16, t0; st.shared.u64 [t1], 0;
            st.shared.u64 [t1+8], 0; bar.warp.sync 0xffffffff; add.u32 t1, t1, {offset};
            ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{t2}}, [t1];"""
        if offset == 0:
            launch(body, outside=TILES)
        else:
            with pytest.raises(Misaligned):
                launch(body, outside=TILES)


def test_movmatrix_transposes():
    data, out = torch.arange(64, dtype=torch.int16), torch.zeros(64, dtype=torch.int16)
    body = at("g0", 4) + at("g1", 4, "x1") + "ld.global.b32 t0, [x0];"
    launch(
        body + "movmatrix.sync.aligned.m8n8.trans.b16 t1, t0; st.global.b32 [x1], t1;", data, out
    )
    assert torch.equal(out.view(8, 8), data.view(8, 8).T)


def test_a_matrix_may_go_to_the_register_of_the_addresses():
    data, out = torch.arange(256, dtype=torch.int16), torch.zeros(256, dtype=torch.int16)
    body = at("g0", 16) + at("g1", 16, "x1")
    body += "ld.global.v2.u64 {x2, x3}, [x0]; mov.u32 t0, tiles; mad.lo.u32 t0, tid, 16, t0;"
    body += "st.shared.v2.u64 [t0], {x2, x3}; bar.warp.sync 0xffffffff;"
    body += "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {t0, t1, t2, t3}, [t0];"
    launch(body + "st.global.v4.u32 [x1], {t0, t1, t2, t3};", data, out, outside=TILES)
    # Lane, matrix, half: row lane / 4, columns lane % 4 * 2 and the next.
    want = data.view(4, 8, 4, 2).permute(1, 2, 0, 3).reshape(-1)
    assert torch.equal(out, want)


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count, trans):
    """Lanes hold numbers that tell their matrix, row and column; rows go to shuffled places."""
    order = torch.randperm(8 * count, generator=torch.Generator().manual_seed(7))
    rows = torch.cat([order, torch.full((32 - 8 * count,), 1 << 20)]).to(torch.int32)
    matrices = torch.arange(64 * count, dtype=torch.int16).view(count, 8, 8)
    held = matrices.transpose(1, 2) if trans else matrices
    values = held.reshape(count, 8, 4, 2).permute(1, 2, 0, 3).reshape(32, count, 2).contiguous()
    out = torch.zeros(8 * count, 8, dtype=torch.int16)
    body = at("g0", 4) + "ld.global.u32 t4, [x0]; mov.u32 t5, tiles; mad.lo.u32 t4, t4, 16, t5;"
    body += at("g1", 4 * count)
    body += "".join(f"ld.global.u32 t{i}, [x0+{4 * i}];" for i in range(count))
    registers = ", ".join(f"t{i}" for i in range(count))
    body += f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [t4], {{{registers}}};"
    body += f"bar.warp.sync 0xffffffff; setp.ge.u32 p0, tid, {8 * count}; @p0 bra DONE;"
    body += at("g2", 16) + "mad.lo.u32 t5, tid, 16, t5; ld.shared.v2.u64 {x2, x3}, [t5];"
    body += "st.global.v2.u64 [x0], {x2, x3}; DONE:"
    launch(body, rows, values, out, outside=TILES, target="sm_90")
    assert torch.equal(out[order], matrices.reshape(-1, 8))


def test_matrix_requests_are_counted():
    """Four matrices are one request; rows 16 bytes apart meet no conflict, 128 apart eightfold."""
    for stride, wavefronts in ((16, 4), (128, 32)):
        body = f"""mov.u32 t0, tiles; mad.lo.u32 t0, tid, {stride}, t0;
            ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{t1, t2, t3, t4}}, [t0];"""
        counts = launch(body, outside=".shared .align 16 .b8 tiles[4096];").counts
        assert counts["shared_requests"] == 1
        assert counts["shared_wavefronts"] == wavefronts
