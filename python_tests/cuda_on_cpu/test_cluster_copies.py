"""Between the blocks of a cluster: arrivals, st.async, bulk copies and multicast."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu.async_snippets import FENCE, bulk, expect, start, wait
from cuda_on_cpu.cluster_snippets import EXCHANGED, OUT, PEER, PEERS, READS, SYNC, run
from cuda_on_cpu.errors import (
    EmulationError,
    Hang,
    Invalid,
    OutOfBounds,
    SharedRace,
)
from cuda_on_cpu.ptx_snippets import zeros

SEEDS = range(4)
ARRIVE = "mapa.shared::cluster.u32 t5, t7, t2; mbarrier.arrive{} _, [t5];"
FORMS = [".release.cluster.shared::cluster.b64", ".shared::cluster.b64"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_arrivals_at_the_peers_mbarrier(form, seed):
    """Each thread arrives at the other block's barrier and waits at its own."""
    body = start(128) + SYNC + PEERS + ARRIVE.format(form) + wait() + READS["mapa"] + OUT + SYNC
    out = zeros(256)
    run(body, out, seed=seed)
    assert out.tolist() == EXCHANGED
    with pytest.raises(SharedRace, match="of rank"):
        run(body.replace(".parity", ".parity.relaxed.cluster"), zeros(256), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fence_of_the_inits_and_a_relaxed_barrier_are_enough(seed):
    """As CUTLASS does."""
    fence = "@p0 fence.mbarrier_init.release.cluster;"
    relaxed = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;"
    init = start(128).replace("bar.sync 0;", fence + relaxed)
    body = init + PEERS + ARRIVE.format(FORMS[0]) + wait() + READS["mapa"] + OUT + SYNC
    out = zeros(256)
    run(body, out, seed=seed)
    assert out.tolist() == EXCHANGED
    with pytest.raises((SharedRace, Invalid), match=r"init"):
        run(body.replace(fence, ""), zeros(256), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_block_may_not_leave_before_others_have_arrived_at_its_mbarrier(seed):
    body = start(128) + SYNC + PEER + ARRIVE.format(FORMS[0])
    run(body + wait(), zeros(1), seed=seed)
    with pytest.raises((SharedRace, OutOfBounds), match="exit"):
        run(body, zeros(1), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_generic_arrivals(seed):
    remote = "cvt.u64.u32 x2, t7; cvta.shared.u64 x2, x2; mapa.u64 x3, x2, t2;"
    remote += "mbarrier.arrive.b64 _, [x3];"
    out = zeros(256)
    run(start(128) + SYNC + PEERS + remote + wait() + READS["mapa"] + OUT + SYNC, out, seed=seed)
    assert out.tolist() == EXCHANGED


@pytest.mark.parametrize("kind", ["b32", "v2.b32", "v4.b32", "b64"])
@pytest.mark.parametrize("seed", SEEDS)
def test_st_async(kind, seed):
    """Sixteen threads give the peer some bytes each, which its mbarrier counts."""
    size = {"b32": 4, "v2.b32": 8, "v4.b32": 16, "b64": 8}[kind]
    value = {"b32": "t3", "v2.b32": "{t3, t3}", "v4.b32": "{t3, t3, t3, t3}", "b64": "x4"}[kind]
    opcode = f"st.async.shared::cluster.mbarrier::complete_tx::bytes.{kind}"
    body = start() + SYNC + PEER + expect(16 * size) + f"""
        mapa.shared::cluster.u32 t4, t7, t2; mapa.shared::cluster.u32 t5, t6, t2;
        mad.lo.u32 t5, tid, {size}, t5; mad.lo.u32 t3, t0, 1000, tid;
        mul.wide.u32 x4, t3, 1; mov.b64 x5, {{t3, t3}}; mov.b64 x4, x5;
        setp.lt.u32 p1, tid, 16; @p1 {opcode} [t5], {value}, [t4];
        {wait()} mad.lo.u32 t1, tid, 4, t6; setp.lt.u32 p1, tid, {4 * size}; mov.u32 t3, 0;
        @p1 ld.shared.u32 t3, [t1];""" + OUT + SYNC  # fmt: skip
    out = zeros(256)
    run(body, out, seed=seed)
    words = size // 4
    for rank in range(2):
        want = [1000 * (1 - rank) + i // words for i in range(16 * words)]
        assert out[128 * rank :][: 16 * words].tolist() == want


@pytest.mark.parametrize("seed", SEEDS)
def test_bulk_copies_between_blocks(seed):
    kind = "shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
    copy = f"@p0 cp.async.bulk.{kind} [t5], [t6], 512, [t4];"
    body = start() + SYNC + PEERS + FENCE + "bar.sync 0;" + expect(512) + """
        mapa.shared::cluster.u32 t4, t7, t2; mapa.shared::cluster.u32 t5, t6, t2;
        add.u32 t5, t5, 512;
        """ + copy + wait() + "ld.shared.u32 t3, [t1+512];" + OUT + SYNC  # fmt: skip
    out = zeros(256)
    run(body, out, seed=seed)
    assert out.tolist() == EXCHANGED
    with pytest.raises(SharedRace, match=r"no fence.proxy.async"):
        run(body.replace(FENCE, ""), zeros(256), seed=seed)
    with pytest.raises((SharedRace, Hang)):
        run(body.replace("[t7], 0", "[t7], 1"), zeros(256), seed=seed)
    with pytest.raises(Invalid, match="not in the shared memory that it writes"):
        run(body.replace("512, [t4]", "512, [t7]"), zeros(256), seed=seed)


CAST = (
    bulk(512, "t6", "x4")
    .replace("bytes [", "bytes.multicast::cluster [")
    .replace("[t7];", "[t7], {};")
)


@pytest.mark.parametrize("seed", SEEDS)
def test_multicast(seed):
    """Rank 1 loads for ranks 0, 1 and 3 of four; rank 2 gets nothing."""
    source, out = torch.arange(500, 628, dtype=torch.int32), zeros(512)
    body = start() + SYNC + PEER + """
        mov.u32 t3, 7; setp.eq.u32 p1, t0, 2; @p1 bra GIVE; mov.u64 x4, g1;""" + expect(512) + """
        setp.ne.u32 p1, t0, 1; @p1 bra LATER;""" + CAST.format("0b1011") + "LATER:" + wait() + """
        mad.lo.u32 t1, tid, 4, t6; ld.shared.u32 t3, [t1];
        GIVE:""" + OUT + SYNC  # fmt: skip
    run(body, out, source, grid=4, cluster=4, seed=seed)
    assert out.view(4, 128)[[0, 1, 3]].tolist() == 3 * [source.tolist()]
    assert out.view(4, 128)[2].tolist() == 128 * [7]
    with pytest.raises(Hang, match="512 bytes are missing"):
        run(body.replace("0b1011", "0b0011"), out, source, grid=4, cluster=4, seed=seed)
    with pytest.raises(EmulationError):
        run(body.replace("0b1011", "0b1111"), out, source, grid=4, cluster=4, seed=seed)
    with pytest.raises(OutOfBounds, match="no block of the cluster"):
        run(body.replace("0b1011", "0b11011"), out, source, grid=4, cluster=4, seed=seed)
